//! Wrong inputs: one clear sentence, the right exit code, nothing lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::place::Place;
use crate::place::{BAD_FILE, DIVERGED, RESOURCES, USAGE, assert_one_sentence};
use crate::resume::{TINY, straight};
use crate::util::{must_not_skip, nextword, stderr};

#[test]
fn wrong_configurations_are_refused_with_the_fact_and_the_fix() {
    let place = Place::new();
    place.refuses(
        &["train", "nowhere.toml"],
        USAGE,
        &["nowhere.toml", "hint:"],
    );
    let unknown = place.write("unknown.toml", "[model]\nn_layer = 2\n");
    place.refuses(
        &["train", &unknown],
        USAGE,
        &["unknown.toml:2", "did you mean `n_layers`?"],
    );
    let binary = place.write("binary.toml", [0xFF, 0x00, 0xFE]);
    place.refuses(&["train", &binary], USAGE, &["binary.toml"]);
    place.training_refuses(
        &["model.n_heads=3"],
        USAGE,
        &["3 heads do not divide d_model = 16", "n_heads = 2"],
    );
    place.training_refuses(&["train.steps=0"], USAGE, &["train.steps"]);
    place.training_refuses(
        &["schedule.warmup_steps=99"],
        USAGE,
        &["warm-up of 99 steps"],
    );
    place.training_refuses(
        &["model.vocab_size=3"],
        USAGE,
        &["model.vocab_size", "the model 3"],
    );
    place.training_refuses(
        &["expect_parameters=1"],
        USAGE,
        &["expect_parameters", "not 1"],
    );
}

#[test]
fn wrong_texts_are_refused_with_the_fact_and_the_fix() {
    let place = Place::new();
    let path = |name: &str| format!("data={{path={:?}}}", place.path(name).display().to_string());
    place.training_refuses(&[&path("missing.txt")], BAD_FILE, &["missing.txt"]);
    place.write("empty.txt", "");
    place.training_refuses(&[&path("empty.txt")], BAD_FILE, &["empty.txt"]);
    place.write("binary.txt", [b'a', 0xFF, 0xFE, 0x00]);
    place.training_refuses(&[&path("binary.txt")], BAD_FILE, &["binary.txt", "UTF-8"]);
    place.write("short.txt", "twelve chars");
    place.training_refuses(
        &[&path("short.txt"), "model.context_length=64"],
        USAGE,
        &["64", "hint:"],
    );
    place.write("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": oops}\n");
    place.training_refuses(&[&path("broken.jsonl")], BAD_FILE, &["broken.jsonl", "2"]);
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let place = Place::new();
    place.training_refuses(&["device=\"gpu\""], USAGE, &["`gpu`", "hint:"]);
    place.training_refuses(&["device=\"cuda\""], USAGE, &["cuda", "hint:"]);
    place.training_refuses(&["device=\"wgpu:7\""], USAGE, &["wgpu:7", "flex"]);
}

#[test]
fn folders_that_cannot_be_written_are_refused() {
    let place = Place::new();
    place.write("file", "not a folder");
    place.training_refuses(&["out=\"file/run\""], RESOURCES, &["file/run"]);
    if cfg!(target_os = "linux") {
        place.training_refuses(&["out=\"/proc/run\""], RESOURCES, &["/proc/run"]);
    }
}

#[test]
fn a_model_that_cannot_fit_into_memory_is_refused_before_it_is_made() {
    let place = Place::new();
    let huge = [
        "model.d_model=65536",
        "model.n_heads=64",
        "model.n_layers=90",
    ];
    place.training_refuses(&huge, RESOURCES, &["memory"]);
}

#[test]
fn a_diverging_run_stops_and_names_what_was_not_finite() {
    let place = Place::new();
    let args = place.train_with(&[
        "schedule.learning_rate=1e30",
        "optimizer.clip_norm=0",
        "checkpoint.every=0",
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = place.run(&args);
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
    assert_one_sentence(&error);
    assert!(
        !place.path("runs/tiny/last").exists(),
        "no record of numbers that are none"
    );
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_the_first_stays() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex").display().to_string();
    let before = fs::read(Path::new(&run).join("metrics.jsonl")).unwrap();
    let out = format!("out={run:?}");
    place.training_refuses(
        &[&out],
        USAGE,
        &["there is a run in this folder already", "nextword resume"],
    );
    assert_eq!(
        fs::read(Path::new(&run).join("metrics.jsonl")).unwrap(),
        before
    );
}

#[test]
fn records_that_do_not_fit_together_are_refused() {
    let place = Place::new();
    let run = straight(place.folder.path(), "flex");
    place.refuses(
        &["generate", "nowhere"],
        BAD_FILE,
        &["`nowhere` does not exist"],
    );
    let record = run.join("best");
    let shown = record.display().to_string();

    let tokenizer = fs::read_to_string(record.join("tokenizer.json")).unwrap();
    fs::write(record.join("tokenizer.json"), "{\"model\": 3}").unwrap();
    place.refuses(&["generate", &shown, "One"], BAD_FILE, &["tokenizer.json"]);
    let other = place.write("other.txt", "only a few of these letters");
    let prepared = place.path("prepared").display().to_string();
    assert!(
        place
            .run(&["prepare", &other, "--out", &prepared])
            .status
            .success()
    );
    fs::copy(
        Path::new(&prepared).join("tokenizer.json"),
        record.join("tokenizer.json"),
    )
    .unwrap();
    place.refuses(&["generate", &shown, "One"], BAD_FILE, &["tokenizer"]);
    fs::write(record.join("tokenizer.json"), tokenizer).unwrap();

    let config = fs::read_to_string(record.join("config.json")).unwrap();
    fs::write(
        record.join("config.json"),
        config.replace("\"n_layers\": 2", "\"n_layers\": 3"),
    )
    .unwrap();
    place.refuses(
        &["generate", &shown, "One"],
        BAD_FILE,
        &["missing: `blocks.2.attention.query.weight`"],
    );
    fs::write(record.join("config.json"), config).unwrap();

    let weights = fs::read(record.join("model.safetensors")).unwrap();
    fs::write(
        record.join("model.safetensors"),
        &weights[..weights.len() - 9],
    )
    .unwrap();
    place.refuses(
        &["generate", &shown, "One"],
        BAD_FILE,
        &["model.safetensors"],
    );
}

/// A disk of one megabyte, which needs the right to mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_with_its_code_and_keeps_what_was_saved() {
    let place = Place::new();
    let config = place.write(
        "tiny.toml",
        TINY.replace("keep_last = 2", "keep_last = 100"),
    );
    let disk = place.path("disk").display().to_string();
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
        eprintln!("skipped: no unshare here");
        return;
    };
    let error = stderr(&output);
    let may_not = output.status.code() == Some(77) || error.starts_with("unshare:");
    if may_not {
        assert!(!must_not_skip(), "{error}");
        eprintln!("skipped: this user may not mount a disk: {error}");
        return;
    }
    assert_eq!(output.status.code(), Some(RESOURCES), "{error}");
    assert_one_sentence(&error);
    assert!(error.contains("No space left"), "{error}");
    let kept: u32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(
        kept >= 2,
        "checkpoints before the disk was full stay: {kept}"
    );
}
