//! Sweeps, comparisons, checks of data and exported metrics, with the built program.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::util::{nextword, stderr};

const CONFIG: &str = r#"
name = "tiny"
seed = 3
[data]
builtin = "stories"
documents = 60
[data.tokenizer]
kind = "char"
[model]
n_layers = 1
n_heads = 2
d_model = 16
context_length = 32
[train]
steps = 150
batch_size = 4
log_every = 10
[validation]
every = 50
windows = 16
[checkpoint]
every = 10
[schedule]
learning_rate = 3e-3
warmup_steps = 0
"#;

const VARY: [&str; 4] = [
    "--vary",
    "model.d_model=8,16",
    "--vary",
    "train.batch_size=2,4",
];

fn sweep(folder: &Path, out: &Path) -> Command {
    let config = folder.join("tiny.toml");
    fs::write(&config, CONFIG).unwrap();
    let mut command = nextword();
    command.arg("sweep").arg(config).args(VARY);
    command
        .args(["--seeds", "2", "--json", "--quiet", "--out"])
        .arg(out);
    command
}

fn succeeded(output: Output) -> Output {
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// The results of a sweep without speeds, times and memory.
fn results(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("results.json")).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    remove_measured(&mut value);
    value
}

fn remove_measured(value: &mut Value) {
    match value {
        Value::Object(table) => {
            table.remove("measured");
            table.values_mut().for_each(remove_measured);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_measured),
        _ => {}
    }
}

#[test]
fn a_sweep_that_is_killed_five_times_ends_with_the_results_of_an_undisturbed_one() {
    let folder = tempfile::tempdir().unwrap();
    let (undisturbed, killed) = (folder.path().join("a"), folder.path().join("b"));
    let output = succeeded(sweep(folder.path(), &undisturbed).output().unwrap());
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let arms = printed["arms"].as_array().unwrap();
    assert_eq!(arms.len(), 4);
    for milliseconds in [300, 700, 450, 900, 600] {
        let mut command = sweep(folder.path(), &killed);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeeded(sweep(folder.path(), &killed).output().unwrap());
    assert_eq!(results(&killed), results(&undisturbed));
    // A repeated call trains nothing.
    let before = fs::read(killed.join("results.json")).unwrap();
    succeeded(sweep(folder.path(), &killed).output().unwrap());
    assert_eq!(fs::read(killed.join("results.json")).unwrap(), before);

    compare_two_runs(&undisturbed);
    export_metrics(&undisturbed.join("model.d_model=8,train.batch_size=2/seed-3"));
}

/// The runs of a sweep are ordinary runs.
fn compare_two_runs(sweep: &Path) {
    let run = |arm: &str| sweep.join(arm).join("seed-3");
    let (a, b) = (
        run("model.d_model=8,train.batch_size=4"),
        run("model.d_model=16,train.batch_size=4"),
    );
    let output = nextword().arg("compare").args([&a, &b]).output().unwrap();
    let text = String::from_utf8(succeeded(output).stdout).unwrap();
    assert!(
        text.contains("model.d_model") && text.contains("8  →  16"),
        "{text}"
    );
    assert!(
        text.contains("B is better by") || text.contains("A is better by"),
        "{text}"
    );
    let output = nextword()
        .arg("compare")
        .args([&a, &b])
        .arg("--json")
        .output()
        .unwrap();
    let value: Value = serde_json::from_slice(&succeeded(output).stdout).unwrap();
    let difference = &value["comparison"]["difference"];
    let mean = value["comparison"]["b"]["loss"].as_f64().unwrap()
        - value["comparison"]["a"]["loss"].as_f64().unwrap();
    assert!((difference["mean"].as_f64().unwrap() - mean).abs() < 1e-9);
    let output = nextword()
        .arg("compare")
        .arg(&a)
        .args(["--device", "flex", "--device", "ndarray", "--json"])
        .output()
        .unwrap();
    let value: Value = serde_json::from_slice(&succeeded(output).stdout).unwrap();
    let (difference, largest) = (&value["max_logit_difference"], &value["max_logit"]);
    assert!(
        difference.as_f64().unwrap() < 1e-4 * largest.as_f64().unwrap(),
        "{value}"
    );
}

fn export_metrics(run: &Path) {
    let export = |format: &str| {
        let mut command = nextword();
        command
            .arg("export-metrics")
            .arg(run)
            .args(["--format", format]);
        succeeded(command.output().unwrap())
    };
    let csv = String::from_utf8(export("csv").stdout).unwrap();
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(csv.lines().count(), 1 + metrics.lines().count());
    export("tensorboard");
    export("tensorboard"); // replaces its own file
    let events = fs::read(run.join("tensorboard/events.out.tfevents.nextword")).unwrap();
    assert_eq!(&events[23..36], b"brain.Event:2");
}

#[test]
fn doctor_finds_faults_of_the_data_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tiny.toml");
    fs::write(&config, CONFIG).unwrap();
    let doctor = |set: &[&str]| {
        nextword()
            .arg("doctor")
            .arg(&config)
            .args(set)
            .output()
            .unwrap()
    };
    let text =
        String::from_utf8(succeeded(doctor(&["--set", "data.documents=300"])).stdout).unwrap();
    assert!(text.contains("nothing found"), "{text}");
    let file = folder.path().join("text.txt");
    fs::write(&file, "a line\r\nand another one\r\n".repeat(400)).unwrap();
    let output = doctor(&["--set", &format!("data.path={}", file.display())]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("CR LF") && text.contains("fix: "), "{text}");
}

#[test]
fn doctor_passes_the_cpu_backends() {
    let output = nextword()
        .args(["doctor", "--device", "flex", "--device", "ndarray"])
        .output()
        .unwrap();
    let text = String::from_utf8(succeeded(output).stdout).unwrap();
    assert!(
        text.lines().count() >= 14 && !text.contains("FAILED"),
        "{text}"
    );
}
