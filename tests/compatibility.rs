//! Run folders and model folders written by version 0.1 keep working.
//!
//! `fixtures/v0.1` holds a run that was stopped after half of its steps, a model folder, its 8-bit
//! form, and what version 0.1 itself computed from them. `scripts/make_v0_1_fixture.sh` made them
//! with the program of commit 9e59c6a.

use std::fs;
use std::path::Path;

use nextword_model::ModelDir;
use serde_json::Value;

use crate::test_dir::{TestDir, json_lines};
use crate::util::{copy, flex, root, sha256, stderr};

/// A copy of the fixtures and the expected values.
fn fixture() -> (TestDir, Value) {
    let dir = TestDir::new();
    copy(&root().join("tests/fixtures/v0.1"), dir.folder.path());
    let expected = fs::read_to_string(dir.path("expected.json")).unwrap();
    (dir, serde_json::from_str(&expected).unwrap())
}

fn succeeds(dir: &TestDir, args: &[&str]) {
    let output = dir.run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
}

fn losses(metrics: &Path) -> Vec<f64> {
    fs::read_to_string(metrics)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
        .collect()
}

#[test]
fn a_run_of_0_1_resumes_with_the_same_losses() {
    let (dir, recorded) = fixture();
    succeeds(&dir, &["resume", "run", "--quiet"]);
    let found = losses(&dir.path("run/metrics.jsonl"));
    let expected: Vec<f64> = serde_json::from_value(recorded["losses"].clone()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Other vector widths add in another order.
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "step {step}: {found} instead of {expected}"
        );
    }
    // On the vector width that wrote the fixture, the bits are the same too.
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let found = sha256(&dir.path("run/checkpoints/step-00000400").join(file));
            assert_eq!(found, recorded["resumed_avx512"][file], "{file}");
        }
    }
    let state = fs::read_to_string(dir.path("run/checkpoints/step-00000400/state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["settings"]["model.d_model"], 16);
    // The new checkpoint is compared in its new form.
    let set = ["--set", "train.steps=401"];
    succeeds(&dir, &[&["resume", "run", "--quiet"], &set[..]].concat());
}

#[test]
fn a_changed_run_of_0_1_does_not_resume() {
    let (dir, _) = fixture();
    let config = dir.path("run/run.toml");
    let text = fs::read_to_string(&config).unwrap();
    let changed = text.replace("learning_rate = 0.01\n", "learning_rate = 0.02\n");
    assert_ne!(text, changed);
    fs::write(&config, changed).unwrap();
    let output = dir.run(&["resume", "run", "--quiet"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("optimizer, schedule or batch size has changed"));
}

#[test]
fn a_changed_run_names_the_changed_key() {
    let (dir, _) = fixture();
    succeeds(&dir, &["resume", "run", "--quiet"]);
    let config = dir.path("run/run.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("batch_size = 4\n", "batch_size = 5\n"),
    )
    .unwrap();
    let output = dir.run(&["resume", "run", "--quiet"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("train.batch_size was 4, is 5"), "{error}");
}

#[test]
fn models_of_0_1_generate_the_same_text() {
    let (dir, expected) = fixture();
    for model in ["run", "model", "model-int8"] {
        let sampling = [
            ("greedy", ["--temperature", "0"]),
            ("sampled", ["--seed", "3"]),
        ];
        for (name, options) in sampling {
            let args = ["generate", model, "One day", "--json", "--max-tokens", "40"];
            let found = json_lines(&dir.run(&[&args[..], &options].concat()));
            let name = format!("{model} {name}");
            assert_eq!(found[0]["text"], expected["text"][&name], "{name}");
        }
    }
}

#[test]
fn models_of_0_1_have_the_same_loss() {
    let (dir, expected) = fixture();
    let text = dir.path("text.txt").display().to_string();
    for model in ["run", "model", "model-int8"] {
        let found = json_lines(&dir.run(&["eval", model, &text, "--json"]));
        let found = &found[0]["loss"]["nats_per_token"];
        let expected = &expected["loss"][model]["nats_per_token"];
        let difference = found.as_f64().unwrap() - expected.as_f64().unwrap();
        assert!(difference.abs() < 1e-5, "{model}: {found}, not {expected}");
    }
}

#[test]
fn models_of_0_1_export_to_the_same_weights_and_tokens() {
    let (dir, expected) = fixture();
    let text = fs::read_to_string(dir.path("text.txt")).unwrap();
    for model in ["run", "model"] {
        let hf = format!("{model}-hf");
        let gguf = format!("{model}.gguf");
        let to_hf = ["export", model, "--format", "hf", "--out", &hf];
        succeeds(&dir, &to_hf);
        succeeds(&dir, &["export", model, "--format", "gguf", "--out", &gguf]);
        for file in ["model.safetensors", "config.json"] {
            let found = sha256(&dir.path(&hf).join(file));
            assert_eq!(found, expected["hf"][model][file], "{model}: {file}");
        }
        // Character tokenizers are exported in another form now, in which other characters cause no error.
        let tokenizer = |folder: &str| {
            nextword_data::load_tokenizer(dir.path(folder).join("tokenizer.json")).unwrap()
        };
        let ids = tokenizer("model").encode(&text).ids;
        assert!(!ids.is_empty() && tokenizer(&hf).encode(&text).ids == ids);
    }
}

#[test]
fn a_model_of_0_1_is_a_starting_point_and_quantizes() {
    let (dir, expected) = fixture();
    succeeds(&dir, &["quantize", "model", "--bits", "8", "--out", "int8"]);
    // Files of 0.1 keep their format when they are written again.
    let old = ModelDir::open(&dir.path("model-int8")).unwrap();
    let loaded = old.load(&flex()).unwrap();
    ModelDir::save(&dir.path("again"), &loaded, "{}", &old.card).unwrap();
    assert_eq!(
        sha256(&dir.path("again/model.safetensors")),
        expected["int8"]
    );
    let config = root().join("configs/finetune.toml").display().to_string();
    let mut args = vec!["train", &config, "--quiet"];
    for set in ["start_from=model", "data.path=text.txt", "train.steps=2"] {
        args.extend(["--set", set]);
    }
    succeeds(&dir, &args);
}
