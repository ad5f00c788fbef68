//! Damaged checkpoints are detected, and an older one is used.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_model::CounterRng;
use nextword_train::checkpoint::{self, Checkpoint};

use crate::resume::{resume, train_uninterrupted};
use crate::util::stderr;

const TRIALS: u64 = 400;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
}

/// Flips a bit, truncates, appends a byte, or removes the file. Returns a description.
fn damage(path: &Path, rng: CounterRng) -> String {
    let mut bytes = fs::read(path).unwrap();
    let offset = (rng.at(1) % bytes.len() as u64) as usize;
    let description = match rng.at(2) % 8 {
        0 => {
            fs::remove_file(path).unwrap();
            return "removed".to_string();
        }
        1 => {
            bytes.truncate(offset);
            format!("cut to {offset} bytes")
        }
        2 => {
            bytes.push(b'7');
            "one byte longer".to_string()
        }
        _ => {
            let bit = rng.at(3) % 8;
            bytes[offset] ^= 1 << bit;
            format!("bit {bit} of byte {offset} flipped")
        }
    };
    fs::write(path, bytes).unwrap();
    description
}

#[test]
fn any_damage_is_detected_and_the_older_checkpoint_used() {
    let folder = tempfile::tempdir().unwrap();
    let run = train_uninterrupted(folder.path(), "flex");
    let checkpoints = run.join("checkpoints");
    let [older, newer] = files(&checkpoints).try_into().unwrap();
    let (valid, skipped) = checkpoint::newest(&checkpoints).unwrap();
    assert_eq!((valid.unwrap().path, skipped.len()), (newer.clone(), 0));
    let rng = CounterRng::new(11);
    for number in 0..TRIALS {
        let rng = rng.stream(number);
        let files = files(&newer);
        let path = &files[(rng.at(0) % files.len() as u64) as usize];
        let before = fs::read(path).unwrap();
        let damage = format!("{}: {}", path.display(), damage(path, rng));
        let (found, skipped) = checkpoint::newest(&checkpoints).unwrap();
        assert_eq!(found.unwrap().path, older, "{damage}");
        assert_eq!(skipped.len(), 1, "{damage}");
        fs::write(path, before).unwrap();
    }
    assert!(Checkpoint::open(&newer).is_ok(), "all damage was undone");
}

#[test]
fn resume_reports_the_skipped_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let run = train_uninterrupted(folder.path(), "flex");
    let newest = run.join("checkpoints/step-00000024");
    let expected = fs::read(newest.join("model.safetensors")).unwrap();
    fs::write(
        newest.join("model.safetensors"),
        &expected[..expected.len() / 2],
    )
    .unwrap();
    let output = resume(&run, "flex").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("skipped a checkpoint"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        fs::read(newest.join("model.safetensors")).unwrap(),
        expected
    );
}

#[test]
fn quarantined_checkpoints_do_not_count_as_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = train_uninterrupted(folder.path(), "flex");
    let checkpoints = run.join("checkpoints");
    fs::write(checkpoints.join("step-00000024/state.json"), "cut").unwrap();
    let mut command = resume(&run, "flex");
    let output = command
        .args(["--set", "checkpoint.keep_last=1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let names: Vec<_> = files(&checkpoints)
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_string())
        .collect();
    assert_eq!(names, ["damaged-step-00000024", "step-00000024"]);
    assert!(Checkpoint::open(&checkpoints.join("step-00000024")).is_ok());
}

#[test]
fn resume_fails_if_all_checkpoints_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let run = train_uninterrupted(folder.path(), "flex");
    for checkpoint in files(&run.join("checkpoints")) {
        fs::write(checkpoint.join("state.json"), "cut").unwrap();
    }
    let weights = run.join("best/model.safetensors");
    let before = fs::read(&weights).unwrap();
    let output = resume(&run, "flex").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("start_from"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read(&weights).unwrap(), before);
}

#[test]
fn a_manifest_cannot_name_files_outside_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = train_uninterrupted(folder.path(), "flex");
    let manifest = run.join("checkpoints/step-00000024/MANIFEST.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("\"card.json\"", "\"../../run.toml\""),
    )
    .unwrap();
    let problem = Checkpoint::open(manifest.parent().unwrap())
        .unwrap_err()
        .to_string();
    assert!(problem.contains("../../run.toml"), "{problem}");
}
