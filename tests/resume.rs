//! Stopped in any way and resumed, a run ends as if it had never stopped: bit for bit.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nextword_model::{CounterRng, weights};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::util::nextword;

const STEPS: u64 = 24;

/// A run of a second with everything that could go wrong on a resume: dropout, accumulation,
/// validation, an epoch's border.
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

/// How a process is stopped.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Interrupt,
    Terminate,
    Kill,
}

/// What a run leaves, without its clock.
#[derive(Debug, PartialEq)]
struct Remains {
    weights: String,
    moments: String,
    best: String,
    metrics: Vec<Value>,
}

fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    format!("{:x}", Sha256::digest(bytes))
}

fn remains(run: &Path) -> Remains {
    let checkpoint = run.join(format!("checkpoints/step-{STEPS:08}"));
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let metrics = metrics.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for clock in ["elapsed", "tokens_per_second"] {
            line.as_object_mut().unwrap().remove(clock);
        }
        line
    });
    Remains {
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

/// Trains without a stop and gives back the run's folder.
pub(crate) fn straight(folder: &Path, device: &str) -> PathBuf {
    let run = folder.join(format!("straight-{device}"));
    let output = train(folder, &run, device).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    run
}

/// Lets `command` run until it has made update `step`, then stops it. Gives back whether it was
/// stopped before its end.
fn stop_at(mut command: Command, step: u64, stop: Stop) -> bool {
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

/// Trains with stops at random places and in random ways, each in a fresh process.
fn with_stops(folder: &Path, device: &str, trial: u64) -> (PathBuf, Vec<(u64, Stop)>) {
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
fn resumed_training_equals_uninterrupted_bit_for_bit() {
    let trials = std::env::var("NEXTWORD_RESUME_TRIALS").ok();
    let trials: u64 = trials.and_then(|n| n.parse().ok()).unwrap_or(6);
    let folder = tempfile::tempdir().unwrap();
    for device in ["flex", "ndarray"] {
        let expected = remains(&straight(folder.path(), device));
        assert_eq!(expected.metrics.len() as u64, STEPS + STEPS / 6);
        let mut stopped = 0;
        for trial in 0..trials {
            let (run, stops) = with_stops(folder.path(), device, trial);
            assert_eq!(remains(&run), expected, "{device}, stops {stops:?}");
            fs::remove_dir_all(run).unwrap();
            stopped += stops.len() as u64;
        }
        assert!(stopped >= trials, "only {stopped} stops in {trials} trials");
    }
}

/// Ends by patience, then is resumed: nothing more may happen.
#[test]
fn a_run_that_lost_its_patience_does_not_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("patient");
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
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("\"reason\":\"patience\""), "{said}");
    let before = fs::read(run.join("metrics.jsonl")).unwrap();
    let output = resume(&run, "flex").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("\"reason\":\"patience\""), "{said}");
    assert_eq!(fs::read(run.join("metrics.jsonl")).unwrap(), before);
}

/// Changes one thing of a stopped run, which must then be refused, with the words that say why.
#[cfg(unix)]
#[test]
fn a_resume_of_something_else_is_refused_and_changes_nothing() {
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
        (|run| replace(run, "steps = 24", "steps = 5"), "fewer than"),
        (
            |run| fs::remove_dir_all(run.join("checkpoints")).unwrap(),
            "checkpoints are gone",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (number, (change, says)) in changes.into_iter().enumerate() {
        let run = folder.path().join(format!("changed-{number}"));
        assert!(stop_at(
            train(folder.path(), &run, "flex"),
            6,
            Stop::Interrupt
        ));
        let records = || ["best", "last"].map(|r| sha256(&run.join(r).join("model.safetensors")));
        let before = (records(), fs::read(run.join("metrics.jsonl")).unwrap());
        change(&run);
        let output = resume(&run, "flex").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(says),
            "{says}: {said}"
        );
        assert_eq!(
            (records(), fs::read(run.join("metrics.jsonl")).unwrap()),
            before,
            "{says}"
        );
    }
}

/// Changes a checkpoint behind the program's back, manifest included.
fn tamper(checkpoint: &Path, change: impl FnOnce(&Path)) {
    change(checkpoint);
    let path = checkpoint.join("MANIFEST.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        let of = checkpoint.join(file["name"].as_str().unwrap());
        file["bytes"] = fs::metadata(&of).unwrap().len().into();
        file["sha256"] = sha256(&of).into();
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

/// The test above would notice if a resume forgot something: each of these forgets one thing.
#[cfg(unix)]
#[test]
fn a_resume_that_forgets_something_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let expected = remains(&straight(folder.path(), "flex"));
    type Forget = fn(&Path);
    let forgotten: [(&str, Forget); 5] = [
        ("nothing", |_| {}),
        ("the cursor", |c| change_state(c, "step", 9)),
        ("a first moment", |c| {
            change_tensors(&c.join("optimizer.safetensors"), ".first", |v| v.fill(0.0));
        }),
        ("a second moment", |c| {
            change_tensors(&c.join("optimizer.safetensors"), ".second", |v| v.fill(0.0));
        }),
        ("one bit of one weight", |c| {
            change_tensors(&c.join("model.safetensors"), ".weight", |v| {
                v[0] = f32::from_bits(v[0].to_bits() ^ 1);
            });
        }),
    ];
    for (number, (what, forget)) in forgotten.into_iter().enumerate() {
        let run = folder.path().join(format!("forgets-{number}"));
        assert!(stop_at(train(folder.path(), &run, "flex"), 12, Stop::Kill));
        for newer in ["step-00000015", "step-00000020"] {
            // The process may have gone on before the signal reached it.
            let _ = fs::remove_dir_all(run.join("checkpoints").join(newer));
        }
        tamper(&run.join("checkpoints/step-00000010"), forget);
        assert!(
            resume(&run, "flex").output().unwrap().status.success(),
            "{what}"
        );
        assert_eq!(
            remains(&run) == expected,
            what == "nothing",
            "forgot {what}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_checkpoint_of_one_backend_resumes_on_another() {
    let folder = tempfile::tempdir().unwrap();
    let expected = remains(&straight(folder.path(), "flex"));
    let run = folder.path().join("moved");
    assert!(stop_at(
        train(folder.path(), &run, "flex"),
        11,
        Stop::Terminate
    ));
    assert!(resume(&run, "ndarray").output().unwrap().status.success());
    let moved = remains(&run);
    let losses = |of: &Remains| -> Vec<f64> {
        of.metrics
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
