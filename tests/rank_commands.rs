//! The program and several ranks: what it refuses in a build without MPI, and its plan for ranks.

use std::fs;

use nextword_train::to_toml;
use serde_json::Value;

use crate::ranks::config;
use crate::util::nextword;

/// Exit code and standard error of the program, which is built without MPI.
fn run_program(arguments: &[&str], rank: Option<&str>) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("tiny.toml"),
        to_toml(&config(&[])).unwrap(),
    )
    .unwrap();
    let mut command = nextword();
    command.args(arguments).current_dir(folder.path());
    if let Some(rank) = rank {
        command.env("OMPI_COMM_WORLD_SIZE", "2");
        command.env("OMPI_COMM_WORLD_RANK", rank);
    }
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), message)
}

#[test]
fn a_build_without_mpi_says_how_to_get_it() {
    let build = "cargo build --release -p nextword --features mpi";
    let (code, message) = run_program(&["train", "tiny.toml", "--ranks", "4"], None);
    assert_eq!(code, Some(2));
    assert!(message.contains(build), "{message}");
    let (code, message) = run_program(&["train", "tiny.toml"], Some("0"));
    assert_eq!(code, Some(2));
    assert!(
        message.contains("one of 2 ranks") && message.contains(build),
        "{message}"
    );
    // Lanes matter in a build that can start ranks.
    let (code, message) = run_program(&["train", "tiny.toml", "--ranks", "3"], None);
    assert_eq!(code, Some(2));
    assert!(
        message.contains(build) && !message.contains("lanes"),
        "{message}"
    );
    // One of the ranks is enough.
    assert_eq!(
        run_program(&["train", "tiny.toml"], Some("1")),
        (Some(2), String::new())
    );
}

#[test]
fn wrong_uses_of_ranks_are_refused() {
    let (code, message) = run_program(&["devices"], Some("0"));
    assert_eq!(code, Some(2));
    assert!(message.contains("this command runs on one"), "{message}");
    let (code, message) = run_program(&["train", "tiny.toml", "--ranks", "2"], Some("0"));
    assert_eq!(code, Some(2));
    assert!(message.contains("leave it out"), "{message}");
    let (code, message) = run_program(&["train", "tiny.toml", "--hosts", "file"], None);
    assert_eq!(code, Some(2));
    assert!(message.contains("--ranks"), "{message}");
}

#[test]
fn a_plan_for_ranks_names_the_cost_of_the_exchange() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("tiny.toml"),
        to_toml(&config(&[])).unwrap(),
    )
    .unwrap();
    let mut command = nextword();
    command.current_dir(folder.path());
    command.args([
        "plan",
        "tiny.toml",
        "--steps",
        "1",
        "--ranks",
        "4",
        "--link",
        "1Gb",
        "--json",
    ]);
    let output = command.output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let parameters = plan["parameters"]["total"].as_u64().unwrap();
    assert_eq!(
        plan["ranks"]["sent_bytes"].as_u64(),
        Some(2 * 4 * parameters * 3 / 4)
    );
    assert!(plan["ranks"]["efficiency"].as_f64().unwrap() < 1.0);
}
