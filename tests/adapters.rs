//! Adapters: runs that train them, and every command that takes one in place of a model.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::resume::{Stop, resume, stop_at};
use crate::serving::Server;
use crate::test_dir::{BAD_FILE, TestDir, USAGE};
use crate::util::{copy, nextword, root, sha256, stderr};

/// The steps of a run.
const STEPS: u64 = 12;

/// A `LoRA` run on `base`, as long as it takes to stop it.
const CONFIG: &str = r#"
name = "tuned"
start_from = "base"

[data]
builtin = "stories"
seed = 5
documents = 40

[train]
steps = 12
batch_size = 2
accumulation = 2
sequence_length = 32
log_every = 1

[validation]
every = 4
windows = 4

[checkpoint]
every = 3

[lora]
rank = 4
dropout = 0.1
"#;

/// A folder with the model `base` and the configuration `lora.toml`.
fn with_base() -> TestDir {
    let dir = TestDir::new();
    copy(&root().join("docs/models/letters"), &dir.path("base"));
    dir.write("lora.toml", CONFIG);
    dir.write(
        "text.txt",
        "One day a fox met a crow. The crow had a cheese.\n",
    );
    dir
}

pub(crate) fn succeeds(dir: &TestDir, args: &[&str]) -> Output {
    let output = dir.run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder with the finished run `runs/tuned`.
pub(crate) fn trained() -> TestDir {
    let dir = with_base();
    succeeds(&dir, &["train", "lora.toml", "--quiet"]);
    dir
}

pub(crate) fn rejects(dir: &TestDir, args: &[&str], code: i32, expected: &[&str]) {
    let output = dir.run(args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    for part in expected {
        assert!(
            error.contains(part),
            "{args:?}: `{part}` is missing from {error}"
        );
    }
}

/// Copies the model `from` to `to` and changes its last weight.
fn another_model(dir: &TestDir, from: &str, to: &str) {
    copy(&dir.path(from), &dir.path(to));
    let weights = dir.path(to).join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(weights, bytes).unwrap();
}

#[test]
fn a_run_says_what_it_trains_and_leaves_the_base_as_it_is() {
    let dir = with_base();
    let weights = dir.path("base/model.safetensors");
    let before = sha256(&weights);
    let plan = stdout(&succeeds(&dir, &["plan", "lora.toml", "--steps", "0"]));
    for part in [
        "trains",
        "base base stays as it is",
        "adapter, 4-bit base",
        "learning rate up to 2.0e-3",
    ] {
        assert!(plan.contains(part), "{part} is missing from {plan}");
    }
    let header = dir.run_merged(&["train", "lora.toml"]);
    assert!(
        header.contains("trains ") && header.contains("base base stays as it is"),
        "{header}"
    );
    assert_eq!(sha256(&weights), before);
    let stored = fs::read_to_string(dir.path("runs/tuned/run.toml")).unwrap();
    for part in [
        "[lora]",
        "weight_decay = 0.0",
        "beta2 = 0.999",
        "start_from = \"../../base\"",
    ] {
        assert!(stored.contains(part), "{part} is missing from {stored}");
    }
    for folder in ["best", "last"] {
        assert!(
            dir.path("runs/tuned")
                .join(folder)
                .join("adapter.safetensors")
                .is_file()
        );
        assert!(
            !dir.path("runs/tuned")
                .join(folder)
                .join("model.safetensors")
                .exists()
        );
    }
}

/// The hashes of everything that the end of a run determines, and its metrics without times.
fn artifacts(run: &Path) -> (Vec<String>, Vec<Value>) {
    let checkpoint = run.join(format!("checkpoints/step-{STEPS:08}"));
    let files = [
        checkpoint.join("adapter.safetensors"),
        checkpoint.join("optimizer.safetensors"),
        run.join("last/adapter.safetensors"),
        run.join("best/adapter.safetensors"),
    ];
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let metrics = metrics.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for clock in ["elapsed", "tokens_per_second", "memory"] {
            line.as_object_mut().unwrap().remove(clock);
        }
        line
    });
    (
        files.iter().map(|file| sha256(file)).collect(),
        metrics.collect(),
    )
}

fn train_command(dir: &TestDir, out: &str) -> Command {
    let mut command = nextword();
    command.current_dir(dir.folder.path());
    command.args([
        "train",
        "lora.toml",
        "--json",
        "--set",
        &format!("out={out}"),
    ]);
    command
}

#[cfg(unix)]
#[test]
fn a_killed_lora_run_resumes_bit_for_bit() {
    let dir = with_base();
    assert!(
        train_command(&dir, "whole")
            .output()
            .unwrap()
            .status
            .success()
    );
    let expected = artifacts(&dir.path("whole"));
    for (trial, steps) in [[2, 7], [4, 5], [9, 11]].into_iter().enumerate() {
        let out = format!("stopped-{trial}");
        let run = dir.path(&out);
        let mut command = train_command(&dir, &out);
        for (step, stop) in steps.into_iter().zip([Stop::Kill, Stop::Interrupt]) {
            stop_at(command, step, stop);
            command = resume(&run, "flex");
            command.current_dir(dir.folder.path());
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(artifacts(&run), expected, "{steps:?}");
    }
}

#[test]
fn every_command_takes_an_adapter() {
    let dir = trained();
    let merge = succeeds(&dir, &["merge", "runs/tuned", "--out", "merged"]);
    assert!(
        stderr(&merge).contains("largest difference"),
        "{}",
        stderr(&merge)
    );
    let greedy = |model: &str| {
        let args = [
            "generate",
            model,
            "One day",
            "--temperature",
            "0",
            "--max-tokens",
            "20",
        ];
        stdout(&succeeds(&dir, &args))
    };
    assert_eq!(greedy("runs/tuned"), greedy("merged"));
    assert_eq!(greedy("runs/tuned"), greedy("runs/tuned/best"));
    let loss = |model: &str| {
        let report = stdout(&succeeds(&dir, &["eval", model, "text.txt", "--json"]));
        let report: Value = serde_json::from_str(&report).unwrap();
        report["loss"]["nats_per_token"].as_f64().unwrap()
    };
    assert!((loss("runs/tuned") - loss("merged")).abs() < 1e-5);
    assert!((loss("runs/tuned") - loss("base")).abs() > 1e-5);
    let explained = stdout(&succeeds(
        &dir,
        &["explain", "runs/tuned", "One", "--brief"],
    ));
    assert!(
        explained.contains("base and tuned") && explained.contains("blocks.0.attention.query"),
        "{explained}"
    );
    let what_if = |model: &str, edit: &str| {
        let args = [
            "explain",
            model,
            "One",
            "--what-if",
            edit,
            "--format",
            "json",
        ];
        serde_json::from_str::<Value>(&stdout(&succeeds(&dir, &args))).unwrap()
    };
    let without = what_if("runs/tuned", "adapter=0");
    // The token that the base model finds most likely, with the same probability.
    let base = what_if("base", "head=0.0");
    assert_eq!(without["after"][0]["id"], base["before"][0]["id"]);
    let probability = |json: &Value| json["probability"].as_f64().unwrap();
    let difference = probability(&without["after"][0]) - probability(&base["before"][0]);
    assert!(difference.abs() < 1e-9, "{difference}");
    assert_ne!(without["before"], without["after"]);
    let newest = format!("runs/tuned/checkpoints/step-{STEPS:08}");
    succeeds(&dir, &["generate", &newest, "One", "--max-tokens", "2"]);

    let gguf = [
        "export",
        "runs/tuned",
        "--format",
        "gguf",
        "--out",
        "tuned.gguf",
    ];
    succeeds(&dir, &gguf);
    assert_eq!(greedy("tuned.gguf"), greedy("merged"));
    succeeds(
        &dir,
        &["export", "runs/tuned", "--format", "hf", "--out", "hf"],
    );
    succeeds(&dir, &["quantize", "runs/tuned", "--out", "int8"]);
    assert!((loss("int8") - loss("merged")).abs() < 0.1);

    let server = Server::start(&dir.path("runs/tuned"), &[]);
    let request =
        json!({"model": "tuned", "prompt": "One day", "temperature": 0, "max_tokens": 20});
    let (status, _, body) = server.post("/v1/completions", &request);
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(greedy("merged").contains(body["choices"][0]["text"].as_str().unwrap().trim_end()));
}

#[test]
fn inspect_shows_what_an_adapter_changes() {
    let dir = trained();
    let shown = stdout(&succeeds(&dir, &["inspect", "runs/tuned"]));
    for part in [
        "LoRA: rank 4, scale 8",
        "`base` (",
        "found in",
        "trained",
        "largest changes",
        "blocks.0.",
    ] {
        assert!(shown.contains(part), "{part} is missing from {shown}");
    }
    let details: Value = serde_json::from_str(&stdout(&succeeds(
        &dir,
        &["inspect", "runs/tuned", "--json"],
    )))
    .unwrap();
    assert_eq!(details["lora"]["rank"], 4);
    assert!(details["trained_parameters"].as_u64() > Some(0));
    let changes = details["relative_changes"].as_object().unwrap();
    assert!(!changes.is_empty() && changes.values().all(|change| change.as_f64() > Some(0.0)));
    fs::remove_dir_all(dir.path("base")).unwrap();
    let shown = stdout(&succeeds(&dir, &["inspect", "runs/tuned"]));
    assert!(
        shown.contains("not found") && shown.contains("--base PATH"),
        "{shown}"
    );
}

#[test]
fn a_moved_base_is_named_and_another_one_is_refused() {
    let dir = trained();
    fs::create_dir(dir.path("elsewhere")).unwrap();
    fs::rename(dir.path("base"), dir.path("elsewhere/model")).unwrap();
    let missing = &["was made for `base`", "was not found there", "--base PATH"];
    for command in [
        &["generate", "runs/tuned", "One"][..],
        &["eval", "runs/tuned", "text.txt"],
        &["explain", "runs/tuned", "One"],
        &["merge", "runs/tuned", "--out", "merged"],
    ] {
        rejects(&dir, command, BAD_FILE, missing);
    }
    let generate = ["generate", "runs/tuned", "One", "--base"];
    succeeds(&dir, &[&generate[..], &["elsewhere/model"]].concat());
    copy(&root().join("docs/models/statquest"), &dir.path("other"));
    let wrong = &["was made for `base`", "but this is `other`"];
    rejects(&dir, &[&generate[..], &["other"]].concat(), BAD_FILE, wrong);
    let args = [
        "generate",
        "other",
        "what is statquest",
        "--base",
        "elsewhere/model",
    ];
    rejects(&dir, &args, USAGE, &["--base", "is a model of its own"]);
    // A resumed run takes it from the command line, once.
    let set = [
        "--set",
        "start_from=elsewhere/model",
        "--set",
        "train.steps=14",
    ];
    succeeds(&dir, &[&["resume", "runs/tuned"], &set[..]].concat());
    succeeds(&dir, &["resume", "runs/tuned", "--set", "train.steps=15"]);
    another_model(&dir, "elsewhere/model", "similar");
    let set = ["--set", "start_from=similar"];
    rejects(
        &dir,
        &[&["resume", "runs/tuned"], &set[..]].concat(),
        USAGE,
        &["adapts `", "is `similar`"],
    );
}

#[test]
fn adapters_of_quantized_models_are_merged_only_into_floats() {
    let dir = with_base();
    for bits in ["8", "4"] {
        let base = format!("int{bits}");
        succeeds(&dir, &["quantize", "base", "--bits", bits, "--out", &base]);
        let (start, name) = (format!("start_from={base}"), format!("name=tuned{bits}"));
        succeeds(
            &dir,
            &[
                "train",
                "lora.toml",
                "--quiet",
                "--set",
                &start,
                "--set",
                &name,
            ],
        );
        let run = format!("runs/tuned{bits}");
        succeeds(&dir, &["generate", &run, "One", "--max-tokens", "3"]);
        let (rounded, full) = (format!("rounded{bits}"), format!("full{bits}"));
        let merge = ["merge", &run, "--out", &rounded];
        rejects(
            &dir,
            &merge,
            USAGE,
            &["is quantized", "--dequantize", "--base FULL"],
        );
        succeeds(&dir, &[&merge[..], &["--dequantize"]].concat());
        succeeds(&dir, &["merge", &run, "--out", &full, "--base", "base"]);
        let gguf = ["export", &run, "--format", "gguf", "--out", "x.gguf"];
        rejects(&dir, &gguf, USAGE, &["nextword merge"]);
        // Not the model that was quantized.
        another_model(&dir, "base", "other");
        let merge = ["merge", &run, "--out", "wrong", "--base", "other"];
        rejects(&dir, &merge, BAD_FILE, &["is not the unquantized form"]);
    }
    // An adapter of the floats also belongs to their rounded form.
    succeeds(&dir, &["train", "lora.toml", "--quiet"]);
    succeeds(
        &dir,
        &[
            "generate",
            "runs/tuned",
            "One",
            "--base",
            "int8",
            "--max-tokens",
            "3",
        ],
    );
}

#[test]
fn a_gguf_file_is_adapted() {
    let dir = with_base();
    let export = [
        "export",
        "base",
        "--format",
        "gguf",
        "--dtype",
        "q8_0",
        "--out",
        "base.gguf",
    ];
    succeeds(&dir, &export);
    succeeds(
        &dir,
        &[
            "train",
            "lora.toml",
            "--quiet",
            "--set",
            "start_from=base.gguf",
        ],
    );
    succeeds(
        &dir,
        &["generate", "runs/tuned", "One", "--max-tokens", "3"],
    );
    succeeds(&dir, &["resume", "runs/tuned", "--set", "train.steps=13"]);
    let shown = stdout(&succeeds(&dir, &["inspect", "runs/tuned"]));
    assert!(
        shown.contains("`base.gguf`") && shown.contains("8 bits per weight"),
        "{shown}"
    );
    // A renamed base is found among the other files.
    fs::rename(dir.path("base.gguf"), dir.path("renamed.gguf")).unwrap();
    fs::write(dir.path("damaged.gguf"), "GGUF").unwrap();
    succeeds(
        &dir,
        &["generate", "runs/tuned", "One", "--max-tokens", "3"],
    );
}

#[test]
fn the_scale_of_a_merge_multiplies_the_update() {
    let dir = trained();
    succeeds(
        &dir,
        &["merge", "runs/tuned", "--out", "zero", "--scale", "0"],
    );
    let weights = |folder: &str| sha256(&dir.path(folder).join("model.safetensors"));
    assert_eq!(weights("zero"), weights("base"));
    succeeds(&dir, &["merge", "runs/tuned", "--out", "one"]);
    assert_ne!(weights("one"), weights("base"));
    rejects(
        &dir,
        &["merge", "runs/tuned", "--out", "one"],
        USAGE,
        &["already exists"],
    );
    rejects(
        &dir,
        &["merge", "base", "--out", "two"],
        USAGE,
        &["not an adapter"],
    );
}

#[test]
fn mistakes_in_lora_are_one_error_each() {
    let dir = with_base();
    for (set, expected) in [
        ("lora.rank=500", &["lora.rank", "500"][..]),
        ("lora.rank=0", &["lora.rank"]),
        ("lora.layers=[0, 99]", &["lora.layers"]),
        (
            "lora.target_modules=[\"gate\"]",
            &["lora.target_modules", "query, key, value"],
        ),
        ("lora.target_modules=q_proj", &["q_proj"]),
        ("optimizer.kind=muon", &["optimizer.kind", "adamw"]),
        ("lora.plus_ratio=-1.0", &["lora.plus_ratio"]),
    ] {
        dir.rejects(&["train", "lora.toml", "--set", set], USAGE, expected);
    }
}
