//! Commands that need one kind of model say what they were given instead.

use std::fs;

use serde_json::{Value, json};

use crate::parity::fixtures;
use crate::test_dir::{BAD_FILE, TestDir};
use crate::util::{copy, root, stderr};

fn letters(dir: &TestDir) {
    copy(&root().join("docs/models/letters"), &dir.path("letters"));
    dir.write("text.txt", "One day a fox met a crow. ".repeat(50));
}

#[test]
fn start_from_names_the_way_to_a_model_folder() {
    let dir = TestDir::new();
    letters(&dir);
    copy(&fixtures().join("llama"), &dir.path("hf-llama"));
    dir.write("finetune.toml", "name = 'x'\n[data]\npath = 'text.txt'\n");
    dir.write("letters.gguf", "GGUF but no more than this text");
    let convert = "nextword import";
    for (start_from, expected) in [
        (
            "hf-llama",
            &[
                "hf-llama",
                "is a Hugging Face folder, not a model folder",
                convert,
            ][..],
        ),
        (
            "letters.gguf",
            &[
                "letters.gguf",
                "is a file",
                "letters.gguf --dequantize --out FOLDER",
            ],
        ),
        ("nope", &["nope", "does not exist", "a run folder"]),
        (
            "hf:some/model",
            &[
                "does not exist",
                "nextword import hf:some/model --out FOLDER",
            ],
        ),
    ] {
        let set = format!("start_from={start_from}");
        for command in ["train", "plan"] {
            let args = [command, "finetune.toml", "--set", &set];
            dir.rejects(&args, BAD_FILE, expected);
        }
        assert!(!dir.path("runs/x").exists(), "{start_from}");
    }
    let run = dir.run(&[
        "train",
        "finetune.toml",
        "--dry-run",
        "--set",
        "start_from=letters",
    ]);
    assert!(run.status.success());
}

#[test]
fn folders_of_nextword_need_no_import() {
    let dir = TestDir::new();
    letters(&dir);
    let args = ["import", "letters", "--out", "out"];
    dir.rejects(
        &args,
        BAD_FILE,
        &["letters", "is already a nextword model folder"],
    );
    fs::create_dir_all(dir.path("run")).unwrap();
    dir.write("run/run.toml", "name = 'run'\n");
    dir.rejects(
        &["import", "run", "--out", "out"],
        BAD_FILE,
        &["run", "is a run folder of nextword"],
    );
    assert!(!dir.path("out").exists());
}

#[test]
fn the_library_names_a_hugging_face_folder() {
    let error = nextword_model::ModelDir::open(&fixtures().join("gpt2")).unwrap_err();
    assert!(
        error.to_string().contains("is a Hugging Face folder"),
        "{error}"
    );
}

/// A resumed run reads its data by the paths in `run.toml`, which are resolved.
#[test]
fn a_resumed_run_has_the_card_of_an_uninterrupted_one() {
    let dir = TestDir::new();
    letters(&dir);
    fs::create_dir_all(dir.path("texts")).unwrap();
    fs::copy(dir.path("text.txt"), dir.path("texts/a.txt")).unwrap();
    for data in ["text.txt", "./text.txt", "texts", "texts/../text.txt"] {
        let train = |name: &str, steps: u64| {
            let config = format!(
                "name = '{name}'\nout = '{name}'\n[data]\npath = '{data}'\n\
                 [model]\ncontext_length = 16\nn_layers = 1\nn_heads = 1\nd_model = 8\n\
                 [train]\nsteps = {steps}\nbatch_size = 4\n[schedule]\nwarmup_steps = 1\n"
            );
            let _ = fs::remove_dir_all(dir.path(name));
            dir.write("small.toml", config);
            let output = dir.run(&["train", "small.toml", "--quiet"]);
            assert!(output.status.success(), "{}", stderr(&output));
        };
        let card = |name: &str| -> Value {
            let card = fs::read(dir.path(&format!("{name}/last/card.json"))).unwrap();
            serde_json::from_slice(&card).unwrap()
        };
        train("once", 4);
        train("resumed", 2);
        let output = dir.run(&["resume", "resumed", "--set", "train.steps=4", "--quiet"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let (once, resumed) = (card("once"), card("resumed"));
        assert_eq!(
            (&once["step"], &resumed["step"]),
            (&Value::from(4), &Value::from(4))
        );
        assert_eq!(once["trained_on"], resumed["trained_on"]);
        let described = once["trained_on"].as_str().unwrap();
        assert!(described.starts_with(data), "{described}");
    }
}

#[test]
fn settings_with_more_special_tokens_survive_import_and_export() {
    let dir = TestDir::new();
    for (key, value) in [
        ("extra_special_tokens", json!({"image_token": "<image>"})),
        ("extra_special_tokens", json!(["<a>", "<b>"])),
        ("additional_special_tokens", json!(["<a>"])),
        ("additional_special_tokens", json!([])),
        ("extra_special_tokens", Value::Null),
    ] {
        let folder = dir.path("hf-llama");
        let _ = fs::remove_dir_all(&folder);
        copy(&fixtures().join("llama"), &folder);
        let path = folder.join("tokenizer_config.json");
        let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let fields = settings.as_object_mut().unwrap();
        fields.remove("extra_special_tokens");
        fields.remove("additional_special_tokens");
        settings[key] = value.clone();
        fs::write(&path, settings.to_string()).unwrap();
        for args in [
            &["import", "hf-llama", "--out", "model"][..],
            &["export", "model", "--format", "hf", "--out", "back"],
        ] {
            let output = dir.run(args);
            assert!(output.status.success(), "{}", stderr(&output));
        }
        let path = dir.path("back/tokenizer_config.json");
        let exported: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let is_empty = value.as_array().is_some_and(Vec::is_empty);
        let expected = if is_empty { &Value::Null } else { &value };
        assert_eq!(&exported[key], expected);
    }
}
