//! Run folders of runs that were stopped before their first update: another run may take their place.

use std::fs;
use std::path::Path;

use crate::checkpoint::TEMP_PREFIX;
use crate::{MetricsLine, TrainError};

/// Whether the run in `folder` has made no update and saved no model: then there is nothing in it that its configuration
/// would not make again. A run with `start_from` has saved one, which may be the only copy of the model that it starts
/// from. `false` if there is no run, or if that cannot be told.
pub fn is_unstarted(folder: &Path) -> bool {
    folder.join("run.toml").is_file()
        && ["best", "last"]
            .iter()
            .all(|model| !folder.join(model).exists())
        && has_no_updates(&folder.join("metrics.jsonl"))
        && has_no_checkpoint(&folder.join("checkpoints"))
}

fn has_no_updates(metrics: &Path) -> bool {
    match fs::read_to_string(metrics) {
        Ok(text) => text.lines().all(|line| {
            let line = serde_json::from_str::<MetricsLine>(line);
            line.is_ok_and(|line| line.step == 0)
        }),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Whether there is none that is complete.
fn has_no_checkpoint(checkpoints: &Path) -> bool {
    match fs::read_dir(checkpoints) {
        Ok(entries) => entries.flatten().all(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(TEMP_PREFIX)
        }),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Removes what an unstarted run wrote, except the log probabilities of its reference, which say themselves whether they
/// fit. Its folder is locked.
pub(crate) fn clear(folder: &Path) -> Result<(), TrainError> {
    for name in ["checkpoints", "probes"] {
        let path = folder.join(name);
        ignore_missing(fs::remove_dir_all(&path), &path)?;
    }
    for name in ["metrics.jsonl", "tokenizer.json", "run.toml"] {
        let path = folder.join(name);
        ignore_missing(fs::remove_file(&path), &path)?;
    }
    Ok(())
}

/// The result of removing `path`, which may not have existed.
fn ignore_missing(removed: std::io::Result<()>, path: &Path) -> Result<(), TrainError> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::io(path, "remove")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{RunConfig, RunFolder};

    /// A folder that each change makes one of a run with an update.
    #[test]
    fn only_a_run_without_updates_is_replaced() {
        type Change = fn(&Path);
        let started: [(&str, Change); 7] = [
            ("a logged update", |run| {
                fs::write(
                    run.join("metrics.jsonl"),
                    "{\"step\":1,\"tokens\":9,\"elapsed\":1}\n",
                )
                .unwrap();
            }),
            ("damaged metrics", |run| {
                fs::write(run.join("metrics.jsonl"), "{\"st").unwrap();
            }),
            ("a checkpoint", |run| {
                fs::create_dir_all(run.join("checkpoints/step-00000002")).unwrap();
            }),
            ("the model that it starts from", |run| {
                fs::create_dir_all(run.join("checkpoints/step-00000000")).unwrap();
            }),
            ("a quarantined checkpoint", |run| {
                fs::create_dir_all(run.join("checkpoints/step-00000000.damaged")).unwrap();
            }),
            ("a best model", |run| {
                fs::create_dir(run.join("best")).unwrap();
            }),
            ("a last model", |run| {
                fs::create_dir(run.join("last")).unwrap();
            }),
        ];
        let folder = tempfile::tempdir().unwrap();
        let config = RunConfig::default();
        for (what, change) in started {
            let run = folder.path().join(what);
            drop(RunFolder::create(&run, &config).unwrap());
            change(&run);
            assert!(!is_unstarted(&run), "{what}");
            assert!(RunFolder::create(&run, &config).is_err(), "{what}");
        }
        let run = folder.path().join("unstarted");
        assert!(!is_unstarted(&run));
        drop(RunFolder::create(&run, &config).unwrap());
        fs::write(
            run.join("metrics.jsonl"),
            "{\"step\":0,\"tokens\":0,\"elapsed\":1}\n",
        )
        .unwrap();
        fs::create_dir_all(run.join("checkpoints/.tmp-1")).unwrap();
        fs::write(run.join("notes.txt"), "mine").unwrap();
        assert!(is_unstarted(&run));
        let other = RunConfig { seed: 5, ..config };
        let held = RunFolder::create(&run, &other).unwrap();
        assert_eq!(RunFolder::stored_config(&run).unwrap().seed, 5);
        assert!(!run.join("checkpoints").exists() && run.join("notes.txt").exists());
        // Not while a process is in its first step.
        let error = RunFolder::check_unused(&run).unwrap_err();
        assert!(matches!(error, TrainError::FolderInUse { .. }), "{error}");
        let error = RunFolder::create(&run, &other).unwrap_err();
        assert!(matches!(error, TrainError::FolderInUse { .. }), "{error}");
        drop(held);
        RunFolder::check_unused(&run).unwrap();
    }
}
