//! Invalid input: one clear error, the right exit code, nothing lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::resume::{TINY, train_uninterrupted};
use crate::test_dir::TestDir;
use crate::test_dir::{BAD_FILE, DIVERGED, RESOURCES, USAGE, assert_one_error};
use crate::util::{must_not_skip, nextword, stderr};

#[test]
fn invalid_configs_are_rejected_with_a_hint() {
    let dir = TestDir::new();
    dir.rejects(
        &["train", "nowhere.toml"],
        USAGE,
        &["nowhere.toml", "hint:"],
    );
    let unknown = dir.write("unknown.toml", "[model]\nn_layer = 2\n");
    dir.rejects(
        &["train", &unknown],
        USAGE,
        &["unknown.toml:2", "did you mean `n_layers`?"],
    );
    let binary = dir.write("binary.toml", [0xFF, 0x00, 0xFE]);
    dir.rejects(&["train", &binary], USAGE, &["binary.toml"]);
    dir.training_rejects(
        &["model.n_heads=3"],
        USAGE,
        &["3 heads do not divide d_model = 16", "n_heads = 2"],
    );
    dir.training_rejects(&["train.steps=0"], USAGE, &["train.steps"]);
    dir.training_rejects(
        &["schedule.warmup_steps=99"],
        USAGE,
        &["a warmup of 99 steps"],
    );
    dir.training_rejects(
        &["model.vocab_size=3"],
        USAGE,
        &["model.vocab_size", "the model 3"],
    );
    dir.training_rejects(
        &["expect_parameters=1"],
        USAGE,
        &["expect_parameters", "not 1"],
    );
}

#[test]
fn invalid_texts_are_rejected_with_a_hint() {
    let dir = TestDir::new();
    let path = |name: &str| format!("data={{path={:?}}}", dir.path(name).display().to_string());
    dir.training_rejects(&[&path("missing.txt")], BAD_FILE, &["missing.txt"]);
    dir.write("empty.txt", "");
    dir.training_rejects(&[&path("empty.txt")], BAD_FILE, &["empty.txt"]);
    dir.write("binary.txt", [b'a', 0xFF, 0xFE, 0x00]);
    dir.training_rejects(&[&path("binary.txt")], BAD_FILE, &["binary.txt", "UTF-8"]);
    dir.write("short.txt", "twelve chars");
    dir.training_rejects(
        &[&path("short.txt"), "model.context_length=64"],
        USAGE,
        &["64", "hint:"],
    );
    dir.write("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": oops}\n");
    dir.training_rejects(&[&path("broken.jsonl")], BAD_FILE, &["broken.jsonl", "2"]);
}

#[test]
fn unavailable_devices_are_rejected() {
    let dir = TestDir::new();
    dir.training_rejects(&["device=\"gpu\""], USAGE, &["`gpu`", "hint:"]);
    dir.training_rejects(&["device=\"cuda\""], USAGE, &["cuda", "hint:"]);
    dir.training_rejects(&["device=\"wgpu:7\""], USAGE, &["wgpu:7", "flex"]);
}

#[test]
fn unwritable_folders_are_rejected() {
    let dir = TestDir::new();
    dir.write("file", "not a folder");
    dir.training_rejects(&["out=\"file/run\""], USAGE, &["file/run"]);
    if cfg!(target_os = "linux") {
        dir.training_rejects(&["out=\"/proc/run\""], USAGE, &["/proc/run"]);
    }
}

#[test]
fn a_model_larger_than_memory_is_rejected_early() {
    let dir = TestDir::new();
    let huge = [
        "model.d_model=65536",
        "model.n_heads=64",
        "model.n_layers=90",
    ];
    dir.training_rejects(&huge, RESOURCES, &["memory"]);
}

#[test]
fn a_diverging_run_stops_and_names_the_parameter() {
    let dir = TestDir::new();
    let args = dir.train_with(&[
        "schedule.learning_rate=1e30",
        "optimizer.clip_norm=0",
        "checkpoint.every=0",
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = dir.run(&args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(DIVERGED), "{error}");
    for part in [
        "diverged at step",
        "is not finite",
        "learning rate",
        "gradient norms",
    ] {
        assert!(error.contains(part), "`{part}` in {error}");
    }
    assert_one_error(&error);
    assert!(
        !dir.path("runs/tiny/last").exists(),
        "no model with NaN weights is saved"
    );
}

#[test]
fn a_second_run_in_the_same_folder_is_rejected() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex")
        .display()
        .to_string();
    let before = fs::read(Path::new(&run).join("metrics.jsonl")).unwrap();
    let out = format!("out={run:?}");
    dir.training_rejects(
        &[&out],
        USAGE,
        &["this folder already contains a run", "nextword resume"],
    );
    assert_eq!(
        fs::read(Path::new(&run).join("metrics.jsonl")).unwrap(),
        before
    );
}

#[test]
fn mismatched_model_files_are_rejected() {
    let dir = TestDir::new();
    let run = train_uninterrupted(dir.folder.path(), "flex");
    dir.rejects(
        &["generate", "nowhere"],
        BAD_FILE,
        &["`nowhere` does not exist"],
    );
    let model_dir = run.join("best");
    let model_arg = model_dir.display().to_string();

    let tokenizer = fs::read_to_string(model_dir.join("tokenizer.json")).unwrap();
    fs::write(model_dir.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    dir.rejects(
        &["generate", &model_arg, "One"],
        BAD_FILE,
        &["tokenizer.json"],
    );
    let other_text = dir.write("other.txt", "only a few of these letters");
    let prepared = dir.path("prepared").display().to_string();
    assert!(
        dir.run(&["prepare", &other_text, "--out", &prepared])
            .status
            .success()
    );
    fs::copy(
        Path::new(&prepared).join("tokenizer.json"),
        model_dir.join("tokenizer.json"),
    )
    .unwrap();
    dir.rejects(&["generate", &model_arg, "One"], BAD_FILE, &["tokenizer"]);
    fs::write(model_dir.join("tokenizer.json"), tokenizer).unwrap();

    let config = fs::read_to_string(model_dir.join("config.json")).unwrap();
    fs::write(
        model_dir.join("config.json"),
        config.replace("\"n_layers\": 2", "\"n_layers\": 3"),
    )
    .unwrap();
    dir.rejects(
        &["generate", &model_arg, "One"],
        BAD_FILE,
        &["missing: `blocks.2.attention.query.weight`"],
    );
    fs::write(model_dir.join("config.json"), config).unwrap();

    let weights = fs::read(model_dir.join("model.safetensors")).unwrap();
    fs::write(
        model_dir.join("model.safetensors"),
        &weights[..weights.len() - 9],
    )
    .unwrap();
    dir.rejects(
        &["generate", &model_arg, "One"],
        BAD_FILE,
        &["model.safetensors"],
    );
}

/// Trains on a disk of one megabyte. Mounting it requires privileges.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_the_run_and_keeps_saved_files() {
    let dir = TestDir::new();
    let config = dir.write(
        "tiny.toml",
        TINY.replace("keep_last = 2", "keep_last = 100"),
    );
    let disk = dir.path("disk").display().to_string();
    fs::create_dir(&disk).unwrap();
    let script = "mount -t tmpfs -o size=1m tmpfs \"$1\" || exit 77\n\
                  shift; \"$@\"; code=$?\n\
                  find \"$DISK\" -name MANIFEST.json | wc -l; exit $code";
    let program = nextword().get_program().to_owned();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", &disk])
        .arg(program)
        .args([
            "train",
            &config,
            "--quiet",
            "--set",
            "train.steps=400",
            "--set",
            "checkpoint.every=5",
        ])
        .args(["--set", &format!("out=\"{disk}/run\"")])
        .env("DISK", &disk)
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: unshare is not installed");
        return;
    };
    let error = stderr(&output);
    let cannot_mount = output.status.code() == Some(77) || error.starts_with("unshare:");
    if cannot_mount {
        assert!(!must_not_skip(), "{error}");
        eprintln!("skipped: this user may not mount a disk: {error}");
        return;
    }
    assert_eq!(output.status.code(), Some(RESOURCES), "{error}");
    assert_one_error(&error);
    let is_full = error.contains("No space left") || error.contains("KiB are free");
    assert!(is_full, "{error}");
    let checkpoints: u32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(checkpoints >= 2, "only {checkpoints} checkpoints are left");
}
