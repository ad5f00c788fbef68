//! What a model says about its own tokens is obeyed on every path.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_convert::{export_hf, import};
use nextword_model::weights::FloatType;
use nextword_model::{ModelCard, ModelDir, ModelTokens, TokenSource};
use serde_json::{Value, json};

use crate::gguf;
use crate::gguf_tokenizers::{byte_tokenizer, declared, model_with};
use crate::parity::fixtures;
use crate::serving::Server;
use crate::test_dir::TestDir;
use crate::util::{copy, stderr};

/// Tokens of the fixture's vocabulary: `<unk>` 0, `<s>` 1, `</s>` 2, and text from 3 on.
const TEMPLATE: &str =
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The files of a folder that declare special tokens; `null` removes a file.
struct Declaration<'a> {
    config: &'a Value,
    generation: &'a Value,
    settings: &'a Value,
    post_processor: &'a Value,
    /// Renames `</s>`.
    end: &'a str,
}

/// A copy of the llama fixture that declares its tokens in this way.
fn declare(dir: &TestDir, name: &str, declaration: &Declaration<'_>) -> PathBuf {
    let folder = dir.path(name);
    copy(&fixtures().join("llama"), &folder);
    let path = folder.join("config.json");
    let mut config = read(&path);
    for role in ["bos", "eos", "pad"] {
        let key = format!("{role}_token_id");
        match declaration.config.get(&key) {
            Some(value) => config[&key] = value.clone(),
            None => _ = config.as_object_mut().unwrap().remove(&key),
        }
    }
    fs::write(path, config.to_string()).unwrap();
    for (file, value) in [
        ("generation_config.json", declaration.generation),
        ("tokenizer_config.json", declaration.settings),
    ] {
        let path = folder.join(file);
        if value.is_null() {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, value.to_string()).unwrap();
        }
    }
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let renamed = text.replace("\"</s>\"", &json!(declaration.end).to_string());
    let mut file: Value = serde_json::from_str(&renamed).unwrap();
    file["post_processor"] = declaration.post_processor.clone();
    fs::write(path, file.to_string()).unwrap();
    folder
}

fn prefix_of(token: &str, id: u32) -> Value {
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    json!({"type": "TemplateProcessing", "single": [first, text], "pair": [first, text,
        {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
}

/// EOS ids, the token that ends a document, BOS, padding, prefix, source.
type Expected = (
    Vec<u32>,
    Option<u32>,
    Option<u32>,
    Option<u32>,
    Vec<u32>,
    TokenSource,
);

fn found(special: &ModelTokens) -> Expected {
    (
        special.eos_ids.clone(),
        special.document_eos_id,
        special.bos_id,
        special.pad_id,
        special.prefix().to_vec(),
        special.source.unwrap(),
    )
}

#[test]
#[allow(clippy::too_many_lines)] // A table of cases, or one path.
fn tokens_come_from_the_first_file_that_declares_them() {
    use TokenSource::{Declared, Guessed};
    let dir = TestDir::new();
    let none = Value::Null;
    let ids = |bos: Value, eos: Value| json!({"bos_token_id": bos, "eos_token_id": eos});
    let nothing = json!({});
    let named = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let as_map = json!({"eos_token": {"content": "</s>"}, "pad_token": "<unk>"});
    let cases: Vec<(Value, Value, Value, Value, &str, Expected)> = vec![
        // generation_config.json before config.json, in its order.
        (
            ids(json!(1), json!(2)),
            json!({"eos_token_id": [9, 2]}),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![9, 2], Some(2), Some(1), None, vec![], Declared),
        ),
        // config.json before the tokenizer's settings.
        (
            ids(json!(1), json!(9)),
            none.clone(),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![9], Some(9), Some(1), None, vec![], Declared),
        ),
        // An empty generation_config.json declares nothing.
        (
            ids(json!(1), json!([2, 9])),
            nothing.clone(),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![2, 9], Some(2), Some(1), None, vec![], Declared),
        ),
        // Only the tokenizer's settings, as a text and as a map.
        (
            nothing.clone(),
            none.clone(),
            named.clone(),
            none.clone(),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![], Declared),
        ),
        (
            ids(none.clone(), none.clone()),
            none.clone(),
            as_map,
            none.clone(),
            "</s>",
            (vec![2], Some(2), None, Some(0), vec![], Declared),
        ),
        // No token ends a text, although one has the name of one.
        (
            ids(none.clone(), none.clone()),
            none.clone(),
            nothing.clone(),
            none.clone(),
            "</s>",
            (vec![], None, None, None, vec![], Declared),
        ),
        // Nothing declared: the defaults of the model type.
        (
            nothing.clone(),
            none.clone(),
            nothing.clone(),
            none.clone(),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![], Declared),
        ),
        // A token beyond the vocabulary is none.
        (
            ids(json!(1), json!(50256)),
            none.clone(),
            nothing.clone(),
            none.clone(),
            "</s>",
            (vec![], None, Some(1), None, vec![], Declared),
        ),
        // A name that says nothing.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            json!({"eos_token": "<|turn|>"}),
            prefix_of("<s>", 1),
            "<|turn|>",
            (vec![2], Some(2), Some(1), None, vec![1], Declared),
        ),
        // The template's own first token, which is not the BOS token.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            named.clone(),
            prefix_of("</s>", 2),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![2], Declared),
        ),
        // The settings alone require BOS.
        (
            ids(json!(1), json!(2)),
            none.clone(),
            json!({"bos_token": "<s>", "add_bos_token": true}),
            none.clone(),
            "</s>",
            (vec![2], Some(2), Some(1), None, vec![1], Declared),
        ),
    ];
    for (number, (config, generation, settings, post_processor, end, expected)) in
        cases.iter().enumerate()
    {
        let declaration = Declaration {
            config,
            generation,
            settings,
            post_processor,
            end,
        };
        let folder = declare(&dir, &format!("hf{number}"), &declaration);
        let imported = import(&folder, &dir.path(&format!("model{number}"))).unwrap();
        assert_eq!(&found(&imported.card.special), expected, "case {number}");
        assert_eq!(imported.guessed_eos, None);
    }

    // A guess, where nothing is declared and the type has no defaults. It is said.
    let folder = dir.path("guess");
    copy(&fixtures().join("qwen2"), &folder);
    let path = folder.join("config.json");
    let mut config = read(&path);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        config.as_object_mut().unwrap().remove(key);
    }
    fs::write(path, config.to_string()).unwrap();
    fs::remove_file(folder.join("generation_config.json")).unwrap();
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    let output = dir.run(&["import", "guess", "--out", "guessed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("declares an EOS token; `</s>` is used because of its name"));
    let special = ModelDir::open(&dir.path("guessed")).unwrap().card.special;
    let expected = (vec![2], Some(2), None, None, vec![], Guessed);
    assert_eq!(found(&special), expected);
    // A name that says nothing is not guessed, even if it is the only one.
    let path = folder.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"</s>\"", "\"<|user|>\"")).unwrap();
    let imported = import(&folder, &dir.path("not-guessed")).unwrap();
    assert_eq!(imported.card.special.eos_ids, [] as [u32; 0]);
}

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
fn a_lone_special_token_does_not_end_a_completion() {
    let dir = TestDir::new();
    let none = Value::Null;
    let folder = declare(
        &dir,
        "hf",
        &Declaration {
            config: &json!({"bos_token_id": null, "eos_token_id": null}),
            generation: &none,
            settings: &json!({}),
            post_processor: &none,
            end: "<|user|>",
        },
    );
    let model = dir.path("model");
    import(&folder, &model).unwrap();
    let generator = nextword_generate::TextGenerator::open(
        &ModelDir::open(&model).unwrap(),
        &crate::util::flex(),
    );
    let generator = generator.unwrap();
    assert_eq!(generator.stop_ids(), [] as [u32; 0]);
    assert_eq!(generator.tokenizer().special_tokens().eos, None);
    assert_eq!(
        (generator.bos_text(), generator.eos_text()),
        (String::new(), String::new())
    );
    // It does not end documents either.
    let chunk = nextword_data::TextChunk {
        text: "w1 w2".to_string(),
        is_first: true,
        is_last: true,
    };
    let report = nextword_eval::evaluate_text(
        generator.model(),
        generator.tokenizer().as_ref(),
        &generator.card().special,
        [Ok(chunk)],
        nextword_eval::TextSettings::default(),
    );
    let tokens = generator.tokenizer().encode("w1 w2").ids.len() as u64;
    assert_eq!(report.unwrap().loss.tokens, tokens - 1);
}

#[test]
fn a_text_and_a_task_are_read_after_the_same_token() {
    let dir = TestDir::new();
    let none = Value::Null;
    let text = "w1 w2 w3";
    dir.write("text.txt", text);
    dir.write("task.jsonl", json!({"text": text}).to_string());
    let prefixed = prefix_of("<s>", 1);
    for (name, bos, post_processor, first) in [
        ("adds", json!("<s>"), &prefixed, 1),
        ("declares", json!("<s>"), &none, 1),
        ("lacks", none.clone(), &none, 2),
    ] {
        let bos_id = if bos.is_null() { json!(null) } else { json!(1) };
        let declaration = Declaration {
            config: &json!({"bos_token_id": bos_id, "eos_token_id": 2}),
            generation: &none,
            settings: &json!({"bos_token": bos, "eos_token": "</s>"}),
            post_processor,
            end: "</s>",
        };
        let folder = declare(&dir, &format!("hf-{name}"), &declaration);
        import(&folder, &dir.path(name)).unwrap();
        let json = |args: &[&str]| -> Value {
            let output = dir.run(args);
            assert!(output.status.success(), "{}", stderr(&output));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let by_text = json(&["eval", name, "text.txt", "--json"]);
        let by_task = json(&["eval", name, "--task", "task.jsonl", "--json"]);
        assert_eq!(by_text["prefix"], json!([first]), "{name}");
        assert_eq!(by_text["counts_eos"], false);
        let number = |value: &Value| value.as_f64().unwrap();
        let loss = &by_text["loss"];
        let nats = number(&loss["nats_per_token"]) * number(&loss["tokens"]);
        let bits = number(&by_task["bits_per_byte"]) * text.len() as f64;
        let difference = nats - bits * std::f64::consts::LN_2;
        assert!(difference.abs() < 1e-4, "{name}: {nats} nats, {bits} bits");
        let model = nextword_data::load_tokenizer(dir.path(name).join("tokenizer.json")).unwrap();
        assert_eq!(
            by_text["loss"]["tokens"],
            model.encode(text).ids.len(),
            "{name}"
        );
    }
}

#[test]
fn an_exported_copy_declares_nothing_that_the_original_did_not() {
    let dir = TestDir::new();
    let none = Value::Null;
    let folder = declare(
        &dir,
        "hf",
        &Declaration {
            config: &json!({"bos_token_id": 1, "eos_token_id": 9}),
            generation: &none,
            settings: &json!({"eos_token": "</s>"}),
            post_processor: &none,
            end: "</s>",
        },
    );
    let model = dir.path("model");
    import(&folder, &model).unwrap();
    let out = dir.path("out");
    export_hf(&ModelDir::open(&model).unwrap(), FloatType::F32, &out).unwrap();
    let settings = read(&out.join("tokenizer_config.json"));
    assert_eq!(settings["eos_token"], "</s>");
    for key in ["bos_token", "pad_token", "unk_token"] {
        assert_eq!(settings[key], Value::Null, "{key}");
    }
    let generation = read(&out.join("generation_config.json"));
    assert_eq!(generation["eos_token_id"], 9);
    assert_eq!(generation["pad_token_id"], Value::Null);
}
