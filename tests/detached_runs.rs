//! Finetuned runs that no longer have the model that they started from, after a crash and at another place.

use std::fs;
use std::path::Path;
use std::process::Output;

use nextword_train::{RunFolder, parse_config, prepare_run};

use crate::test_dir::{BAD_FILE, TestDir};
use crate::training::{run, succeeds, train};
use crate::util::stderr;

/// The configuration of a finetuning of `base/runs/tiny`, whose run folder is `tuned`.
fn finetuning(dir: &TestDir) -> String {
    let path = |name: &str| dir.path(name).display().to_string();
    format!(
        "name = 'tuned'\nout = '{}'\nstart_from = '{}'\n\
         [data]\nbuiltin = 'stories'\ndocuments = 12\n\
         [train]\nsteps = 4\nbatch_size = 2\n[schedule]\nwarmup_steps = 0\n[validation]\nwindows = 2\n",
        path("tuned"),
        path("runs/tiny")
    )
}

/// A folder with a trained model in `runs/tiny`, and the configuration `tune.toml`.
fn with_model() -> TestDir {
    let dir = TestDir::new();
    assert!(train(&dir, &["train.steps=6"]).status.success());
    dir.write("tune.toml", finetuning(&dir));
    dir
}

/// The configuration that a run of `tune.toml` stores in `folder` before its first checkpoint.
fn begin_and_crash(dir: &TestDir, folder: &str) {
    let config = parse_config(&finetuning(dir), Path::new("tune.toml"), &[]).unwrap();
    let setup = prepare_run(config).unwrap();
    RunFolder::create(&dir.path(folder), &setup.config).unwrap();
    assert!(stored(dir, folder).contains("start_from"));
}

fn stored(dir: &TestDir, folder: &str) -> String {
    fs::read_to_string(dir.path(folder).join("run.toml")).unwrap()
}

fn remove_model(dir: &TestDir) {
    fs::remove_dir_all(dir.path("runs/tiny")).unwrap();
}

#[test]
fn a_finetuned_run_outside_the_working_directory_can_be_moved() {
    let dir = with_model();
    fs::create_dir(dir.path("project")).unwrap();
    let in_project = |args: &[&str]| -> Output {
        let mut command = crate::util::nextword();
        command.args(args).current_dir(dir.path("project"));
        command.output().unwrap()
    };
    let output = in_project(&["train", "../tune.toml"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let config = stored(&dir, "tuned");
    assert!(config.contains("file = \"tokenizer.json\""), "{config}");
    remove_model(&dir);
    // From another directory too, what is stored stays relative.
    let output = in_project(&["resume", "../tuned", "--set", "train.steps=5"]);
    assert!(output.status.success(), "{}", stderr(&output));
    fs::rename(dir.path("tuned"), dir.path("moved")).unwrap();
    succeeds(&dir, &["resume", "moved"], &["train.steps=6"]);
    let config = stored(&dir, "moved");
    assert!(config.contains("file = \"tokenizer.json\""), "{config}");
}

#[test]
fn a_missing_tokenizer_is_named_with_its_key() {
    let dir = with_model();
    succeeds(&dir, &["train", "tune.toml"], &[]);
    fs::rename(dir.path("tuned/tokenizer.json"), dir.path("own.json")).unwrap();
    let output = dir.run(&["resume", "tuned"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(BAD_FILE), "{error}");
    assert!(error.contains("--set data.tokenizer.file="), "{error}");
    let set = ["data.tokenizer.file=own.json", "train.steps=5"];
    succeeds(&dir, &["resume", "tuned"], &set);
    succeeds(&dir, &["resume", "tuned"], &["train.steps=6"]);
}

#[test]
fn a_run_that_crashed_before_its_first_checkpoint_is_detached_once_it_resumes() {
    for set in [&[][..], &["train.steps=5"]] {
        let dir = with_model();
        begin_and_crash(&dir, "tuned");
        let error = stderr(&succeeds(&dir, &["resume", "tuned"], set));
        assert!(error.contains("no checkpoint was saved before"), "{error}");
        let config = stored(&dir, "tuned");
        assert!(!config.contains("start_from"), "{config}");
        remove_model(&dir);
        succeeds(&dir, &["resume", "tuned"], &["train.steps=7"]);
    }
}

#[test]
fn a_run_that_crashed_right_after_its_first_checkpoint_is_detached_once_it_resumes() {
    for set in [&[][..], &["train.steps=5"]] {
        let dir = with_model();
        begin_and_crash(&dir, "begun");
        let earlier = stored(&dir, "begun");
        succeeds(&dir, &["train", "tune.toml"], &[]);
        dir.write("tuned/run.toml", earlier);
        fs::remove_file(dir.path("tuned/tokenizer.json")).unwrap();
        succeeds(&dir, &["resume", "tuned"], set);
        assert!(!stored(&dir, "tuned").contains("start_from"));
        remove_model(&dir);
        succeeds(&dir, &["resume", "tuned"], &["train.steps=7"]);
    }
}

#[test]
fn resuming_on_another_device_stores_the_device_of_the_run() {
    let dir = with_model();
    begin_and_crash(&dir, "tuned");
    let before = device(&dir);
    let output = run(&dir, &["resume", "tuned", "--device", "ndarray"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(device(&dir), before);
}

/// The line of the stored device.
fn device(dir: &TestDir) -> String {
    let config = stored(dir, "tuned");
    let line = config.lines().find(|line| line.starts_with("device"));
    line.unwrap().to_string()
}
