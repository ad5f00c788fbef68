//! A GGUF file in place of a model folder, in every command.

use nextword_convert::{GgufType, export_gguf};
use nextword_model::{ModelDir, presets};
use serde_json::{Value, json};

use crate::gguf_file::RawFile;
use crate::gguf_tokenizers::{byte_tokenizer, declared};
use crate::serving::Server;
use crate::test_dir::{BAD_FILE, TestDir, USAGE};
use crate::util::{root, stderr};

/// A GGUF file of the letters model, and the folder with the same weights that is imported from it.
fn letters() -> TestDir {
    let dir = TestDir::new();
    let model = ModelDir::open(&root().join("docs/models/letters")).unwrap();
    export_gguf(&model, GgufType::Q8_0, &dir.path("letters.gguf")).unwrap();
    export_gguf(&model, GgufType::F32, &dir.path("plain.gguf")).unwrap();
    succeeds(&dir, &["import", "letters.gguf", "--out", "folder"]);
    dir
}

fn succeeds(dir: &TestDir, args: &[&str]) -> String {
    let output = dir.run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_takes_a_gguf_file() {
    let dir = letters();
    dir.write(
        "text.txt",
        "One day a fox met a crow. The crow had a cheese.\n",
    );
    for args in [
        &[
            "generate",
            "MODEL",
            "One day",
            "--max-tokens",
            "30",
            "--temperature",
            "0",
        ][..],
        &[
            "generate",
            "MODEL",
            "One day",
            "--max-tokens",
            "30",
            "--seed",
            "3",
        ],
        &["eval", "MODEL", "text.txt", "--json"],
        &["explain", "MODEL", "One", "--brief"],
    ] {
        let on = |model: &str| {
            let args: Vec<&str> = args
                .iter()
                .map(|arg| if *arg == "MODEL" { model } else { arg })
                .collect();
            let out = succeeds(&dir, &args);
            assert!(!out.is_empty());
            // Times, and where the model is.
            let mut value: Value = serde_json::from_str(&out).unwrap_or(json!(out));
            for key in ["seconds", "model", "tokens_per_second"] {
                value.as_object_mut().map(|map| map.remove(key));
            }
            value
        };
        assert_eq!(on("letters.gguf"), on("folder"), "{args:?}");
    }
    let details: Value =
        serde_json::from_str(&succeeds(&dir, &["inspect", "letters.gguf", "--json"])).unwrap();
    assert_eq!(details["card"]["name"], "letters");
    assert!(
        details["card"]["trained_on"]
            .as_str()
            .unwrap()
            .contains("the GGUF file `letters` (gpt2)")
    );
    succeeds(&dir, &["inspect", "letters.gguf", "--tensors"]);
    succeeds(
        &dir,
        &["eval", "letters.gguf", "text.txt", "--against", "folder"],
    );
    succeeds(&dir, &["bench", "load", "letters.gguf", "--rounds", "1"]);
    succeeds(
        &dir,
        &["bench", "tokenize", "letters.gguf", "--rounds", "1"],
    );
    succeeds(
        &dir,
        &["quantize", "plain.gguf", "--bits", "8", "--out", "int8"],
    );
    succeeds(&dir, &["generate", "int8", "One day", "--max-tokens", "3"]);
    succeeds(
        &dir,
        &["export", "letters.gguf", "--format", "hf", "--out", "hf"],
    );
    succeeds(
        &dir,
        &[
            "export",
            "letters.gguf",
            "--format",
            "gguf",
            "--dtype",
            "q8_0",
            "--out",
            "again.gguf",
        ],
    );
    let [first, second] =
        ["letters.gguf", "again.gguf"].map(|name| RawFile::read(&dir.path(name)).tensors);
    for (a, b) in first.iter().zip(&second) {
        assert!(a.bytes == b.bytes && a.kind == b.kind, "{}", a.name);
    }
}

#[test]
fn commands_that_need_a_folder_say_so() {
    let dir = letters();
    let config = "start_from = \"letters.gguf\"\nname = \"x\"\n[data]\npath = \"text.txt\"\n";
    dir.write("finetune.toml", config);
    dir.write("text.txt", "One day a fox met a crow. ".repeat(50));
    dir.write("broken.gguf", "GGUF but no more than this text");
    dir.write("other.bin", "neither one nor the other format");
    let import = "letters.gguf --dequantize --out FOLDER";
    dir.rejects(
        &["train", "finetune.toml"],
        BAD_FILE,
        &["letters.gguf", import],
    );
    dir.rejects(
        &["resume", "letters.gguf"],
        BAD_FILE,
        &["is not a run folder"],
    );
    dir.rejects(
        &["quantize", "plain.gguf", "--out", "plain.gguf"],
        USAGE,
        &["is a file"],
    );
    dir.rejects(
        &["import", "letters.gguf", "--out", "letters.gguf"],
        USAGE,
        &["is a file"],
    );
    for command in ["generate", "inspect", "chat"] {
        dir.rejects(
            &[command, "broken.gguf"],
            BAD_FILE,
            &["broken.gguf", "GGUF"],
        );
        dir.rejects(
            &[command, "other.bin"],
            BAD_FILE,
            &["is neither a GGUF file nor a folder"],
        );
        dir.rejects(
            &[command, "missing.gguf"],
            BAD_FILE,
            &["does not exist", "GGUF file"],
        );
    }
}

#[test]
fn a_gguf_file_is_served_with_its_chat_template() {
    let dir = TestDir::new();
    let file = byte_tokenizer(&[("</s>", json!({}))], &[], &json!({}));
    let config = nextword_model::ModelConfig {
        n_layers: 1,
        context_length: 64,
        ..presets::llama_like(257)
    };
    let model = config.init(&crate::util::flex(), 5).unwrap();
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}!";
    let card = nextword_model::ModelCard {
        special: declared(&[256]),
        chat_templates: [("default".to_string(), template.to_string())].into(),
        ..nextword_model::ModelCard::default()
    };
    let path = dir.path("chat");
    ModelDir::save(&path, &model, &file.to_string(), &card).unwrap();
    let gguf = dir.path("chat.gguf");
    export_gguf(&ModelDir::open(&path).unwrap(), GgufType::F32, &gguf).unwrap();
    let reply = |model: &std::path::Path| {
        let server = Server::start(model, &[]);
        let request = json!({"messages": [{"role": "user", "content": "abc"}], "max_tokens": 8, "seed": 1,
            "ignore_eos": true});
        let (status, _, body) = server.post("/v1/chat/completions", &request);
        assert_eq!(status, 200, "{body}");
        let reply: Value = serde_json::from_str(&body).unwrap();
        (
            reply["choices"].clone(),
            reply["usage"]["prompt_tokens"].clone(),
        )
    };
    let from_file = reply(&gguf);
    assert_eq!(from_file.1, 4);
    assert_eq!(from_file, reply(&path));
}
