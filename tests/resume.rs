//! A run that was stopped in any way and resumed equals an uninterrupted run bit for bit.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nextword_model::{CounterRng, weights};
use serde_json::Value;

use crate::util::{nextword, sha256};

const STEPS: u64 = 24;

/// A run of about one second with everything that matters on resume: dropout, gradient accumulation,
/// validation, an epoch boundary.
pub(crate) const TINY: &str = r#"
name = "tiny"

[data]
builtin = "stories"
documents = 12
order = "epoch"

[model]
context_length = 16
n_layers = 2
n_heads = 2
d_model = 16

[model.dropout]
embedding = 0.1
attention = 0.1
residual = 0.1

[train]
steps = 24
batch_size = 4
accumulation = 2
log_every = 1

[schedule]
learning_rate = 3e-3
min_learning_rate = 3e-4
warmup_steps = 4

[validation]
every = 6
windows = 4

[checkpoint]
every = 5
keep_last = 2
"#;

/// The signal that stops a process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    Interrupt,
    Terminate,
    Kill,
}

/// Hashes and metrics of a run, without times.
#[derive(Debug, PartialEq)]
struct RunArtifacts {
    weights: String,
    moments: String,
    best: String,
    metrics: Vec<Value>,
}

fn run_artifacts(run: &Path) -> RunArtifacts {
    let checkpoint = run.join(format!("checkpoints/step-{STEPS:08}"));
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let metrics = metrics.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for clock in ["elapsed", "tokens_per_second", "memory"] {
            line.as_object_mut().unwrap().remove(clock);
        }
        line
    });
    RunArtifacts {
        weights: sha256(&checkpoint.join("model.safetensors")),
        moments: sha256(&checkpoint.join("optimizer.safetensors")),
        best: sha256(&run.join("best/model.safetensors")),
        metrics: metrics.collect(),
    }
}

fn train(folder: &Path, run: &Path, device: &str) -> Command {
    let config = folder.join("tiny.toml");
    fs::write(&config, TINY).unwrap();
    let mut command = nextword();
    command
        .arg("train")
        .arg(config)
        .args(["--json", "--device", device]);
    command.args(["--set", &format!("out={:?}", run.display().to_string())]);
    command
}

pub(crate) fn resume(run: &Path, device: &str) -> Command {
    let mut command = nextword();
    command
        .arg("resume")
        .arg(run)
        .args(["--json", "--device", device]);
    command
}

/// Trains without interruption and returns the run folder.
pub(crate) fn train_uninterrupted(folder: &Path, device: &str) -> PathBuf {
    let run = folder.join(format!("uninterrupted-{device}"));
    let output = train(folder, &run, device).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    run
}

/// Runs `command` until update `step`, then stops it. Returns whether it was stopped before it
/// finished.
pub(crate) fn stop_at(mut command: Command, step: u64, stop: Stop) -> bool {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "step" && event["step"].as_u64() >= Some(step) {
            signal(&mut child, stop);
            break;
        }
    }
    !child.wait().unwrap().success()
}

fn signal(child: &mut Child, stop: Stop) {
    let name = match stop {
        Stop::Interrupt => "-INT",
        Stop::Terminate => "-TERM",
        Stop::Kill => return child.kill().unwrap(),
    };
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &pid])
            .status()
            .unwrap()
            .success()
    );
}

/// Trains with random stops at random steps, each time in a fresh process.
fn train_with_stops(folder: &Path, device: &str, trial: u64) -> (PathBuf, Vec<(u64, Stop)>) {
    let run = folder.join(format!("stopped-{device}-{trial}"));
    let rng = CounterRng::new(trial).named(device);
    let mut stops = Vec::new();
    for number in 0..=rng.at(0) % 4 {
        let step = 1 + rng.at(3 * number + 1) % (STEPS - 2);
        let stop =
            [Stop::Interrupt, Stop::Terminate, Stop::Kill][(rng.at(3 * number + 2) % 3) as usize];
        let command = if run.exists() {
            resume(&run, device)
        } else {
            train(folder, &run, device)
        };
        if stop_at(command, step, stop) {
            stops.push((step, stop));
        }
    }
    let output = resume(&run, device).output().unwrap();
    assert!(
        output.status.success(),
        "{stops:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    (run, stops)
}

#[cfg(unix)]
#[test]
fn resume_is_bitwise_after_any_stop() {
    let trials = std::env::var("NEXTWORD_RESUME_TRIALS").ok();
    let trials: u64 = trials.and_then(|n| n.parse().ok()).unwrap_or(6);
    let folder = tempfile::tempdir().unwrap();
    for device in ["flex", "ndarray"] {
        let expected = run_artifacts(&train_uninterrupted(folder.path(), device));
        assert_eq!(expected.metrics.len() as u64, STEPS + STEPS / 6);
        let mut stopped = 0;
        for trial in 0..trials {
            let (run, stops) = train_with_stops(folder.path(), device, trial);
            assert_eq!(run_artifacts(&run), expected, "{device}, stops {stops:?}");
            fs::remove_dir_all(run).unwrap();
            stopped += stops.len() as u64;
        }
        assert!(stopped >= trials, "only {stopped} stops in {trials} trials");
    }
}

/// Resuming a run that early stopping ended must do nothing.
#[test]
fn a_run_stopped_early_does_not_continue() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("early-stopped");
    let set = [
        "validation.every=1",
        "validation.patience=2",
        "train.steps=400",
    ];
    let mut command = train(folder.path(), &run, "flex");
    command.args(set.iter().flat_map(|set| ["--set", *set]));
    command.args([
        "--set",
        "schedule.learning_rate=0.5",
        "--set",
        "schedule.kind=\"constant\"",
    ]);
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.contains("\"reason\":\"patience\""), "{stdout}");
    let before = fs::read(run.join("metrics.jsonl")).unwrap();
    let output = resume(&run, "flex").output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.contains("\"reason\":\"patience\""), "{stdout}");
    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);
}

/// Changes one part of a stopped run. Resuming must then fail with the reason and change nothing.
#[cfg(unix)]
#[test]
fn resume_rejects_changed_data_and_settings() {
    type Change = fn(&Path);
    fn replace(run: &Path, from: &str, to: &str) {
        let path = run.join("run.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }
    let changes: [(Change, &str); 6] = [
        (
            |run| replace(run, "seed = 1337", "seed = 1338"),
            "have changed",
        ),
        (
            |run| replace(run, "batch_size = 4", "batch_size = 8"),
            "have changed",
        ),
        (
            |run| replace(run, "kind = \"adamw\"", "kind = \"sgd\""),
            "have changed",
        ),
        (
            |run| replace(run, "documents = 12", "documents = 13"),
            "the data has changed",
        ),
        (|run| replace(run, "steps = 24", "steps = 5"), "less than"),
        (
            |run| fs::remove_dir_all(run.join("checkpoints")).unwrap(),
            "checkpoints are missing",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let run = folder.path().join(format!("changed-{number}"));
        // After the first validation, which saves the best model: a stop within it would come before that.
        assert!(stop_at(
            train(folder.path(), &run, "flex"),
            7,
            Stop::Interrupt
        ));
        let model_hashes =
            || ["best", "last"].map(|name| sha256(&run.join(name).join("model.safetensors")));
        let before = (model_hashes(), fs::read(run.join("metrics.jsonl")).unwrap());
        change(&run);
        let output = resume(&run, "flex").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains(expected),
            "{expected}: {error}"
        );
        assert_eq!(
            (model_hashes(), fs::read(run.join("metrics.jsonl")).unwrap()),
            before,
            "{expected}"
        );
    }
}

/// Modifies a checkpoint and its manifest.
fn modify_checkpoint(checkpoint: &Path, change: impl FnOnce(&Path)) {
    change(checkpoint);
    let path = checkpoint.join("MANIFEST.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        let file_path = checkpoint.join(file["name"].as_str().unwrap());
        file["bytes"] = fs::metadata(&file_path).unwrap().len().into();
        file["sha256"] = sha256(&file_path).into();
    }
    fs::write(path, manifest.to_string()).unwrap();
}

fn change_tensors(path: &Path, name_ends_in: &str, change: impl Fn(&mut Vec<f32>)) {
    let mut tensors = weights::load_tensors(path).unwrap();
    let found = tensors
        .iter_mut()
        .find(|(name, _)| name.ends_with(name_ends_in));
    change(&mut found.unwrap().1.1);
    weights::save_tensors(&tensors, path).unwrap();
}

fn change_state(checkpoint: &Path, key: &str, value: u64) {
    let path = checkpoint.join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_ne!(state[key], value);
    state[key] = value.into();
    fs::write(path, state.to_string()).unwrap();
}

/// Negative controls: each change drops one part of the state, which the comparison must detect.
#[cfg(unix)]
#[test]
fn incomplete_resume_state_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let expected = run_artifacts(&train_uninterrupted(folder.path(), "flex"));
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("nothing", |_| {}),
        ("the cursor", |checkpoint| {
            change_state(checkpoint, "step", 9);
        }),
        ("a first moment", |checkpoint| {
            change_tensors(&checkpoint.join("optimizer.safetensors"), ".first", |v| {
                v.fill(0.0);
            });
        }),
        ("a second moment", |checkpoint| {
            change_tensors(&checkpoint.join("optimizer.safetensors"), ".second", |v| {
                v.fill(0.0);
            });
        }),
        ("one bit of one weight", |checkpoint| {
            change_tensors(&checkpoint.join("model.safetensors"), ".weight", |v| {
                v[0] = f32::from_bits(v[0].to_bits() ^ 1);
            });
        }),
    ];
    for (number, (changed, change)) in changes.into_iter().enumerate() {
        let run = folder.path().join(format!("changed-{number}"));
        assert!(stop_at(train(folder.path(), &run, "flex"), 12, Stop::Kill));
        for newer in ["step-00000015", "step-00000020"] {
            // The process may have continued before the signal arrived.
            let _ = fs::remove_dir_all(run.join("checkpoints").join(newer));
        }
        modify_checkpoint(&run.join("checkpoints/step-00000010"), change);
        assert!(
            resume(&run, "flex").output().unwrap().status.success(),
            "{changed}"
        );
        assert_eq!(
            run_artifacts(&run) == expected,
            changed == "nothing",
            "changed: {changed}"
        );
    }
}

#[cfg(unix)]
#[test]
fn checkpoints_resume_on_another_backend() {
    let folder = tempfile::tempdir().unwrap();
    let expected = run_artifacts(&train_uninterrupted(folder.path(), "flex"));
    let run = folder.path().join("moved");
    assert!(stop_at(
        train(folder.path(), &run, "flex"),
        11,
        Stop::Terminate
    ));
    assert!(resume(&run, "ndarray").output().unwrap().status.success());
    let moved = run_artifacts(&run);
    let losses = |artifacts: &RunArtifacts| -> Vec<f64> {
        artifacts
            .metrics
            .iter()
            .filter_map(|line| line["loss"].as_f64())
            .collect()
    };
    let (moved, expected) = (losses(&moved), losses(&expected));
    assert_eq!(moved.len(), expected.len());
    for (step, (a, b)) in moved.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-4, "step {step}: {a} and {b}");
    }
}
