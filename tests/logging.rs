//! `--verbose` and `NEXTWORD_LOG` select what is logged to standard error.

use std::process::Output;

use crate::test_dir::TestDir;
use crate::util::{nextword, stderr};

/// Trains for a few steps.
fn train(dir: &TestDir, options: &[&str], log: Option<&str>) -> Output {
    let mut command = nextword();
    command
        .args(dir.train_with(&["train.steps=6"]))
        .arg("--quiet")
        .args(options)
        .current_dir(dir.folder.path());
    match log {
        Some(log) => command.env("NEXTWORD_LOG", log),
        None => command.env_remove("NEXTWORD_LOG"),
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn nothing_is_logged_by_default_and_checkpoints_with_verbose() {
    assert_eq!(stderr(&train(&TestDir::new(), &[], None)), "");
    let log = stderr(&train(&TestDir::new(), &["--verbose"], None));
    let span = " INFO checkpoint{step=6}: nextword_train::checkpoint";
    assert!(log.contains(span), "{log}");
    assert!(log.contains("checkpoint saved step=6 path="), "{log}");
    assert!(!log.contains("DEBUG"), "{log}");
}

#[test]
fn the_log_variable_selects_spans_of_steps() {
    let log = stderr(&train(&TestDir::new(), &[], Some("nextword_train=debug")));
    for step in 0..6 {
        let span =
            format!("DEBUG step{{step={step}}}: nextword_train::training_loop: step done loss=");
        assert_eq!(log.matches(&span).count(), 1, "{log}");
    }
    let log = stderr(&train(
        &TestDir::new(),
        &["-v"],
        Some("nextword_model=debug"),
    ));
    assert!(log.contains("device opened name=flex"), "{log}");
    assert!(!log.contains("checkpoint saved"), "{log}");
}

#[test]
fn an_invalid_log_variable_is_one_warning() {
    let log = stderr(&train(&TestDir::new(), &[], Some("nextword_train=inof")));
    assert_eq!(log.lines().count(), 1, "{log}");
    let expected = "warning: NEXTWORD_LOG is ignored: `inof` is not a level; hint: use a level";
    assert!(log.starts_with(expected), "{log}");
}
