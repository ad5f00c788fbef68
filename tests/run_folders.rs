//! Run folders that are moved or removed, and signals at any time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::test_dir::{RESOURCES, TestDir, assert_one_error};
use crate::training::{succeeds, train};
use crate::util::{nextword, stderr};

const INTERRUPTED: i32 = 130;

#[test]
fn an_existing_run_can_be_planned_and_a_run_without_checkpoint_says_so() {
    let dir = TestDir::new();
    assert!(train(&dir, &[]).status.success());
    succeeds(&dir, &["train", "tiny.toml", "--dry-run"], &[]);
    // As after a crash before the first checkpoint.
    for name in ["checkpoints", "best", "last"] {
        fs::remove_dir_all(dir.path("runs/tiny").join(name)).unwrap();
    }
    let output = succeeds(&dir, &["resume", "runs/tiny"], &[]);
    let error = stderr(&output);
    assert!(error.contains("no checkpoint was saved before"), "{error}");
}

#[test]
fn a_jump_of_the_learning_rate_on_resume_is_said_with_both_rates() {
    let dir = TestDir::new();
    assert!(train(&dir, &[]).status.success());
    let resume = |set: &[&str]| stderr(&succeeds(&dir, &["resume", "runs/tiny"], set));
    assert!(!resume(&[]).contains("learning rate changes"));
    let error = resume(&["train.steps=48"]);
    let part = "with train.steps = 48 instead of 24, the learning rate changes from 3.";
    assert!(error.contains(part), "{error}");
    assert!(!resume(&[]).contains("learning rate changes"));
}

#[test]
fn a_moved_run_resumes_with_its_data() {
    let dir = TestDir::new();
    fs::create_dir_all(dir.path("project/texts")).unwrap();
    let text = "one day a fox met a crow. ".repeat(40);
    dir.write("project/texts/a.txt", &text);
    dir.write("project/tiny.toml", crate::resume::TINY);
    let in_project = |args: &[&str]| -> Output {
        let project = dir.path("project");
        nextword().args(args).current_dir(project).output().unwrap()
    };
    let output = in_project(&["train", "tiny.toml", "--set", "data.path=texts/a.txt"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let config = fs::read_to_string(dir.path("project/runs/tiny/run.toml")).unwrap();
    assert!(config.contains("path = \"../../texts/a.txt\""), "{config}");

    fs::rename(dir.path("project"), dir.path("moved")).unwrap();
    let run = "moved/runs/tiny";
    succeeds(&dir, &["resume", run], &["train.steps=25"]);
    // The stored path is still relative.
    fs::rename(dir.path("moved"), dir.path("again")).unwrap();
    let run = run.replace("moved", "again");
    succeeds(&dir, &["resume", &run], &["train.steps=26"]);

    fs::rename(dir.path("again/texts/a.txt"), dir.path("b.txt")).unwrap();
    let output = dir.run(&["resume", &run]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("--set data.path="),
        "{}",
        stderr(&output)
    );
    dir.write("other.txt", text.replace("fox", "cat"));
    let error = stderr(&crate::training::run(
        &dir,
        &["resume", &run],
        &["data.path=other.txt"],
    ));
    assert!(error.contains("the data has changed"), "{error}");
    succeeds(
        &dir,
        &["resume", &run],
        &["data.path=b.txt", "train.steps=27"],
    );
    // The new place is stored.
    succeeds(&dir, &["resume", &run], &["train.steps=28"]);
}

/// A training process whose events are read one at a time.
pub(crate) struct TrainingProcess {
    pub(crate) child: Child,
    pub(crate) lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl TrainingProcess {
    pub(crate) fn start(dir: &TestDir, set: &[&str]) -> Self {
        let mut args = dir.train_with(set);
        args.push("--json".to_string());
        let mut child = nextword()
            .args(&args)
            .current_dir(dir.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads events up to one of the kind `event`, at `step` or later.
    pub(crate) fn wait_for(&mut self, event: &str, step: u64) {
        let found = self.lines.by_ref().any(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            line["event"] == event && line["step"].as_u64().unwrap_or(step) >= step
        });
        assert!(found, "{event} of step {step} did not occur");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// The remaining kinds of events, the exit code and standard error.
    fn finish(self) -> (Vec<String>, Option<i32>, String) {
        let events = self.lines.map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            line["event"].as_str().unwrap().to_string()
        });
        let events = events.collect();
        let output = self.child.wait_with_output().unwrap();
        (events, output.status.code(), stderr(&output))
    }
}

#[test]
fn a_removed_run_folder_ends_the_run() {
    for set in [
        &["checkpoint.every=0", "validation.every=0"][..],
        &[
            "train.log_every=1000000",
            "checkpoint.every=400",
            "validation.every=0",
        ],
        &[
            "train.log_every=1000000",
            "checkpoint.every=0",
            "validation.every=400",
        ],
    ] {
        let dir = TestDir::new();
        let set = [&["train.steps=1000000"], set].concat();
        let mut running = TrainingProcess::start(&dir, &set);
        running.wait_for("step", 1);
        fs::remove_dir_all(dir.path("runs/tiny")).unwrap();
        let (events, code, error) = running.finish();
        assert_eq!(code, Some(RESOURCES), "{error}");
        assert_one_error(&error);
        assert!(error.contains("was removed or moved"), "{error}");
        let saved = events
            .iter()
            .any(|event| event == "checkpoint" || event == "ended");
        assert!(!saved && !dir.path("runs/tiny").exists(), "{events:?}");
    }
}

#[test]
fn a_signal_before_the_first_step_ends_the_run_at_once() {
    for name in ["-INT", "-TERM"] {
        let dir = TestDir::new();
        // A first step that takes many seconds.
        let set = [
            "train.batch_size=500",
            "model.d_model=256",
            "train.accumulation=1000",
        ];
        let mut running = TrainingProcess::start(&dir, &set);
        running.wait_for("started", 0);
        running.signal(name);
        let (events, code, error) = running.finish();
        assert_eq!(code, Some(INTERRUPTED), "{error}");
        assert!(error.contains("stopped before the first step"), "{error}");
        assert!(events.is_empty(), "{events:?}");
        assert!(!dir.path("runs/tiny/last").exists());
        // Nothing is in the way of the next run.
        assert!(dir.path("runs/tiny/run.toml").exists());
        let again = train(&dir, &["train.steps=2"]);
        assert!(again.status.success(), "{}", stderr(&again));
    }
}

#[test]
fn a_signal_says_whether_there_is_a_checkpoint() {
    for (every, expected) in [
        ("0", "nothing is saved yet"),
        ("2", "the last checkpoint is kept"),
    ] {
        let dir = TestDir::new();
        let every = format!("checkpoint.every={every}");
        let mut running = TrainingProcess::start(&dir, &["train.steps=1000000", &every]);
        running.wait_for("step", 4);
        running.signal("-INT");
        let (events, code, error) = running.finish();
        assert_eq!(code, Some(INTERRUPTED), "{error}");
        assert!(error.contains(expected), "{error}");
        assert_eq!(events.last().map(String::as_str), Some("ended"));
    }
}
