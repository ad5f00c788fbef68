//! Which checkpoints stay.

use std::fs;
use std::path::Path;

use super::{LEFTOVER, MANIFEST, Skipped, step_of};
use crate::{CheckpointConfig, TrainError};

/// Removes checkpoints that `config` does not keep: all but the newest `keep_last` and those whose
/// step is a multiple of `keep_every`. Folders without a manifest of ours are never touched.
///
/// # Errors
/// [`TrainError::Io`] if a folder cannot be read or removed.
pub fn prune(folder: &Path, config: &CheckpointConfig) -> Result<(), TrainError> {
    let entries = fs::read_dir(folder).map_err(TrainError::io(folder, "read"))?;
    let mut steps: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join(MANIFEST).exists())
        .filter_map(|entry| Some((step_of(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    steps.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (step, path) in steps.into_iter().skip(config.keep_last) {
        let for_good = config.keep_every > 0 && step.is_multiple_of(config.keep_every);
        if !for_good {
            // Under another name first: a folder that is half removed is no damaged checkpoint.
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let going = folder.join(format!("{LEFTOVER}removed-{name}"));
            fs::rename(&path, &going).map_err(TrainError::io(&path, "rename"))?;
            fs::remove_dir_all(&going).map_err(TrainError::io(&going, "remove"))?;
        }
    }
    Ok(())
}

/// Gives damaged checkpoints another name, `damaged-step-N`, so that they neither count among the
/// newest nor stand in the way of new ones. Nothing is removed.
///
/// # Errors
/// [`TrainError::Io`] if a folder cannot be renamed.
pub fn set_aside(skipped: &[Skipped]) -> Result<(), TrainError> {
    for Skipped { path, .. } in skipped {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let free = (0..).map(|n| match n {
            0 => path.with_file_name(format!("damaged-{name}")),
            n => path.with_file_name(format!("damaged-{name}-{n}")),
        });
        if let Some(aside) = free.into_iter().find(|aside| !aside.exists()) {
            fs::rename(path, &aside).map_err(TrainError::io(path, "rename"))?;
        }
    }
    Ok(())
}

/// Removes what a killed process left half-written.
///
/// # Errors
/// [`TrainError::Io`] if a folder cannot be read or removed.
pub fn remove_leftovers(folder: &Path) -> Result<(), TrainError> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder, "read"))? {
        let entry = entry.map_err(TrainError::io(folder, "read"))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(LEFTOVER)) else {
            continue;
        };
        let path = entry.path();
        // Killed between two renames: the older checkpoint still is under its other name.
        let original = name
            .strip_suffix(".old")
            .and_then(|name| name.split_once("-step-"))
            .map(|(_, step)| folder.join(format!("step-{step}")));
        match original {
            Some(original) if !original.exists() => {
                fs::rename(&path, &original).map_err(TrainError::io(&path, "rename"))?;
            }
            _ => fs::remove_dir_all(&path).map_err(TrainError::io(&path, "remove"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn folder(steps: &[u64]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for step in steps {
            let path = folder.path().join(super::super::folder_name(*step));
            fs::create_dir(&path).unwrap();
            fs::write(path.join(MANIFEST), "{}").unwrap();
        }
        folder
    }

    #[test]
    fn the_newest_and_the_multiples_stay_and_foreign_folders_are_never_touched() {
        let folder = folder(&[10, 20, 30, 40, 50]);
        fs::create_dir(folder.path().join("step-00000005")).unwrap();
        fs::create_dir(folder.path().join("mine")).unwrap();
        let config = CheckpointConfig {
            every: 10,
            keep_last: 2,
            keep_every: 20,
        };
        prune(folder.path(), &config).unwrap();
        let expected = [
            "mine",
            "step-00000005",
            "step-00000020",
            "step-00000040",
            "step-00000050",
        ];
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn a_damaged_checkpoint_set_aside_does_not_count_among_the_newest() {
        let folder = folder(&[10, 20]);
        let path = folder.path().join("step-00000020");
        let problem = String::new();
        set_aside(&[Skipped { path, problem }]).unwrap();
        let config = CheckpointConfig {
            keep_last: 1,
            ..CheckpointConfig::default()
        };
        prune(folder.path(), &config).unwrap();
        assert_eq!(
            names(folder.path()),
            ["damaged-step-00000020", "step-00000010"]
        );
    }

    #[test]
    fn what_a_killed_process_left_is_cleared_and_a_checkpoint_put_aside_comes_back() {
        let folder = folder(&[10]);
        fs::create_dir(folder.path().join(".tmp-7-step-00000030")).unwrap();
        fs::create_dir(folder.path().join(".tmp-7-step-00000020.old")).unwrap();
        fs::create_dir(folder.path().join(".tmp-7-step-00000010.old")).unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["step-00000010", "step-00000020"]);
    }
}
