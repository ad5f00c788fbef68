//! A model's special tokens and chat templates survive finetuning, quantization, export and import.

use std::fs;

use nextword_convert::export_hf;
use nextword_model::weights::FloatType;
use nextword_model::{ModelCard, ModelDir, ModelTokens};
use serde_json::{Value, json};

use crate::gguf;
use crate::gguf_tokenizers::{byte_tokenizer, declared, model_with};
use crate::parity::fixtures;
use crate::serving::Server;
use crate::special_tokens::{prefix_of, read};
use crate::test_dir::{BAD_FILE, TestDir};
use crate::util::{copy, stderr};

const TEMPLATE: &str =
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";

/// Everything that must survive, apart from what training changes.
fn kept(card: &ModelCard) -> (ModelTokens, Vec<(String, String)>) {
    let templates = card.chat_templates.clone().into_iter().collect();
    (card.special.clone(), templates)
}

#[test]
#[allow(clippy::too_many_lines)] // A table of cases, or one path.
fn special_tokens_and_templates_survive_every_path() {
    let dir = TestDir::new();
    let plain = json!({});
    let names = ["<s>", "<|turn|>", "<x>", "<fill>"]; // 256 to 259
    let file = byte_tokenizer(&names.map(|name| (name, plain.clone())), &[], &plain);
    let made = model_with(&dir, &file, declared(&[]));
    let hf = dir.path("hf");
    export_hf(&made, FloatType::F32, &hf).unwrap();
    let change = |name: &str, fields: Value| {
        let path = hf.join(name);
        let mut value = read(&path);
        for (key, field) in fields.as_object().unwrap() {
            value[key] = field.clone();
        }
        fs::write(path, value.to_string()).unwrap();
    };
    let ids = json!({"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 259});
    change("config.json", ids.clone());
    change("generation_config.json", ids);
    change(
        "generation_config.json",
        json!({"eos_token_id": [257, 258]}),
    );
    change(
        "tokenizer.json",
        json!({"post_processor": prefix_of("<s>", 256)}),
    );
    let templates =
        json!([{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "x"}]);
    let settings = json!({"bos_token": "<s>", "eos_token": "<|turn|>", "add_bos_token": true,
        "chat_template": templates});
    change("tokenizer_config.json", settings);
    let run = |args: &[&str]| {
        let output = dir.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let card = |name: &str| ModelDir::open(&dir.path(name)).unwrap().card;
    run(&["import", "hf", "--out", "imported"]);
    let expected = kept(&card("imported"));
    assert_eq!(expected.0.eos_ids, [257, 258]);
    assert_eq!(expected.0.config_eos_ids, Some(vec![257]));
    assert_eq!(expected.1.len(), 2);

    // Finetune, stop, resume.
    dir.write("text.txt", "the cat sat on the mat. ".repeat(60));
    let config = "name = \"tuned\"\nout = \"tuned\"\nstart_from = \"imported\"\n[data]\npath = \"text.txt\"\n\
                  [train]\nsteps = 2\nbatch_size = 2\n[schedule]\nwarmup_steps = 0\n\n\
                  [validation]\nevery = 0\n[checkpoint]\nevery = 1\n[samples]\nevery = 0\n";
    dir.write("tune.toml", config);
    run(&["train", "tune.toml", "--quiet"]);
    assert_eq!(kept(&card("tuned/last")), expected);
    fs::rename(dir.path("imported"), dir.path("moved")).unwrap();
    run(&["resume", "tuned", "--set", "train.steps=3", "--quiet"]);
    fs::rename(dir.path("moved"), dir.path("imported")).unwrap();
    assert_eq!(kept(&card("tuned/last")), expected);
    let run_config = fs::read_to_string(dir.path("tuned/run.toml")).unwrap();
    assert!(run_config.contains("eos = \"<|turn|>\""), "{run_config}");

    // Quantize.
    run(&["quantize", "tuned", "--last", "--out", "small"]);
    assert_eq!(kept(&card("small")), expected);

    // Export, and import again.
    run(&[
        "export", "tuned", "--last", "--format", "hf", "--out", "exported",
    ]);
    for (file, key, expected) in [
        ("config.json", "eos_token_id", json!(257)),
        ("config.json", "bos_token_id", json!(256)),
        ("config.json", "pad_token_id", json!(259)),
        ("generation_config.json", "eos_token_id", json!([257, 258])),
        ("generation_config.json", "bos_token_id", json!(256)),
        ("generation_config.json", "pad_token_id", json!(259)),
        ("tokenizer_config.json", "bos_token", json!("<s>")),
        ("tokenizer_config.json", "eos_token", json!("<|turn|>")),
        ("tokenizer_config.json", "pad_token", Value::Null),
        ("tokenizer_config.json", "add_bos_token", json!(true)),
    ] {
        let found = &read(&dir.path("exported").join(file))[key];
        assert_eq!(found, &expected, "{key} of {file}");
    }
    let processor = &read(&dir.path("exported/tokenizer.json"))["post_processor"];
    assert_eq!(processor["single"][0]["SpecialToken"]["id"], "<s>");
    run(&["import", "exported", "--out", "again"]);
    assert_eq!(kept(&card("again")), expected);

    // GGUF.
    run(&["export", "again", "--format", "gguf", "--out", "model.gguf"]);
    let gguf = gguf::read(&dir.path("model.gguf"));
    for (key, expected) in [
        ("eos_token_id", "257"),
        ("eot_token_id", "258"),
        ("bos_token_id", "256"),
        ("padding_token_id", "259"),
        ("add_bos_token", "true"),
        ("add_eos_token", "false"),
    ] {
        assert_eq!(
            gguf.meta[&format!("tokenizer.ggml.{key}")],
            expected,
            "{key}"
        );
    }
    assert_eq!(gguf.meta["tokenizer.chat_template"], TEMPLATE);
    assert_eq!(gguf.meta["tokenizer.chat_template.rag"], "x");

    // Generate, and serve.
    let prompt = "the cat";
    for model in ["imported", "tuned/last", "small", "again"] {
        let args = [
            "generate",
            model,
            prompt,
            "--json",
            "--max-tokens",
            "1",
            "--temperature",
            "0",
        ];
        let completion: Value = serde_json::from_str(&run(&args)).unwrap();
        let server = Server::start(&dir.path(model), &[]);
        let count = |path: &str, body: Value| -> Value {
            let (status, _, text) = server.post(path, &body);
            assert_eq!(status, 200, "{model}: {text}");
            serde_json::from_str(&text).unwrap()
        };
        let tokens = count("/tokenize", json!({"content": prompt}));
        let plain = tokens["count"].as_u64().unwrap();
        assert_eq!(
            completion["prompt_tokens"],
            plain + 1,
            "{model}: <s> and the prompt"
        );
        let messages = json!([{"role": "user", "content": prompt}]);
        let chat = count(
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 1}),
        );
        assert_eq!(
            chat["usage"]["prompt_tokens"],
            plain + 2,
            "{model}: <s>, the prompt and <|turn|>"
        );
    }
}

#[test]
fn a_finetuned_model_keeps_the_prompt_template() {
    let dir = TestDir::new();
    copy(
        &crate::util::root().join("docs/models/statquest"),
        &dir.path("statquest"),
    );
    dir.write(
        "tune.toml",
        "name = \"tuned\"\nout = \"tuned\"\nstart_from = \"statquest\"\n[data]\nbuiltin = \"statquest\"\npacking = \"documents\"\n\
         [data.split]\nvalidation = 0.0\n[train]\nsteps = 2\nbatch_size = 2\n[schedule]\nwarmup_steps = 0\n\
         learning_rate = 1e-6\nmin_learning_rate = 1e-7\n[checkpoint]\nevery = 0\n[samples]\nevery = 0\n",
    );
    let output = dir.run(&["train", "tune.toml", "--quiet"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for model in ["statquest", "tuned"] {
        let output = dir.run(&["generate", model, "what is statquest", "--temperature", "0"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("awesome"), "{model}: {text}");
    }
}

#[test]
fn templates_that_cannot_be_read_are_not_lost_silently() {
    let dir = TestDir::new();
    copy(
        &crate::util::root().join("docs/models/letters"),
        &dir.path("model"),
    );
    dir.write("text.txt", "the cat sat on the mat. ".repeat(60));
    dir.write(
        "tune.toml",
        "name = \"tuned\"\nout = \"runs/tuned\"\nstart_from = \"model\"\n[data]\npath = \"text.txt\"\n\
         [train]\nsteps = 1\nbatch_size = 1\n[schedule]\nwarmup_steps = 0\n",
    );
    let file = dir.path("model/chat_template.jinja");
    for (content, part) in [
        (vec![b'x'; (1 << 20) + 1], "is larger than"),
        (vec![b'x', 0xff], "is not UTF-8 text"),
    ] {
        fs::write(&file, content).unwrap();
        let expected = ["chat_template.jinja", part];
        for args in [
            &["train", "tune.toml", "--quiet"][..],
            &["quantize", "model", "--out", "copy"],
            &["export", "model", "--format", "hf", "--out", "copy"],
            &["export", "model", "--format", "gguf", "--out", "copy.gguf"],
        ] {
            dir.rejects(args, BAD_FILE, &expected);
            assert!(!dir.path("copy").exists() && !dir.path("copy.gguf").exists());
        }
        let output = dir.run(&["generate", "model", "the", "--max-tokens", "2"]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn templates_get_the_unknown_and_the_padding_token() {
    let dir = TestDir::new();
    let folder = dir.path("hf");
    copy(&fixtures().join("llama"), &folder);
    let settings = json!({"unk_token": "<unk>", "pad_token": "</s>",
        "chat_template": "{{ unk_token }}{{ pad_token }}{{ bos_token is defined }}"});
    fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
    let model = dir.path("model");
    nextword_convert::import(&folder, &model).unwrap();
    let generator = nextword_generate::TextGenerator::open(
        &ModelDir::open(&model).unwrap(),
        &crate::util::flex(),
    )
    .unwrap();
    let expected = [("unk_token", "<unk>"), ("pad_token", "</s>")];
    let expected = expected.map(|(name, text)| (name, text.to_string()));
    assert_eq!(generator.further_token_texts(), expected);
    let prompt = generator.tokenizer().encode("<unk></s>False").ids;
    assert!(prompt.starts_with(&[0, 2]));
    let server = Server::start(&model, &[]);
    let request = json!({"messages": [{"role": "user", "content": "w1"}], "max_tokens": 1});
    let (status, _, text) = server.post("/v1/chat/completions", &request);
    assert_eq!(status, 200, "{text}");
    let reply: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(reply["usage"]["prompt_tokens"], prompt.len());
}
