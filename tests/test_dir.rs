//! A temporary folder to run the program in, and assertions on its output.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use crate::resume::TINY;
use crate::util::{nextword, output, stderr};

/// Exit codes, as documented in the README.
pub(crate) const USAGE: i32 = 2;
pub(crate) const BAD_FILE: i32 = 3;
pub(crate) const DIVERGED: i32 = 4;
pub(crate) const RESOURCES: i32 = 5;

/// The end of the configuration of a run with everything that matters on resume: dropout, gradient accumulation,
/// checkpoints.
pub(crate) const RESUMABLE: &str = r#"
[model.dropout]
residual = 0.1
[train]
steps = 12
batch_size = 2
accumulation = 2
log_every = 1
[schedule]
kind = "constant"
warmup_steps = 0
[checkpoint]
every = 4
"#;

/// A temporary folder, one per test.
pub(crate) struct TestDir {
    pub(crate) folder: tempfile::TempDir,
}

impl TestDir {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        output(nextword().args(args).current_dir(self.folder.path()))
    }

    /// Runs a command that must succeed. Returns its standard output.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed. Returns its standard output and its standard error in the order in
    /// which it wrote them: both are the same pipe.
    pub(crate) fn run_merged(&self, args: &[&str]) -> String {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = nextword();
        command.args(args).current_dir(self.folder.path());
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        drop(command); // It keeps the pipe open.
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        text
    }

    /// Runs a command that must fail with the exit code `code` and one error message that contains all
    /// of `expected`. It must not create a run folder.
    pub(crate) fn rejects(&self, args: &[&str], code: i32, expected: &[&str]) {
        let output = self.run(args);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert_one_error(&error);
        for part in expected {
            assert!(
                error.contains(part),
                "{args:?}: `{part}` is missing from {error}"
            );
        }
        assert!(
            output.stdout.is_empty(),
            "{args:?} prints to standard output"
        );
        assert!(!self.path("runs").exists(), "{args:?} creates a run folder");
    }

    pub(crate) fn train_with(&self, set: &[&str]) -> Vec<String> {
        let config = self.write("tiny.toml", TINY);
        let mut args = vec!["train".to_string(), config];
        args.extend(
            set.iter()
                .flat_map(|set| ["--set".to_string(), (*set).to_string()]),
        );
        args
    }

    pub(crate) fn training_rejects(&self, set: &[&str], code: i32, expected: &[&str]) {
        let args = self.train_with(set);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.rejects(&args, code, expected);
    }
}

pub(crate) fn assert_one_error(error: &str) {
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    assert!(
        !error.contains("panicked") && !error.contains("internal error"),
        "{error}"
    );
}

pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
