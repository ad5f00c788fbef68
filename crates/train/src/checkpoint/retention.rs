//! Removing old checkpoints, quarantining damaged ones, and cleaning up after a killed process.

use std::fs;
use std::path::Path;

use super::{DamagedCheckpoint, MANIFEST, TEMP_PREFIX, parse_step};
use crate::{CheckpointConfig, TrainError};

/// Removes old checkpoints: all except the newest `keep_last` and those whose step is a multiple of
/// `keep_every`. Folders without a manifest are never touched.
///
/// # Errors
/// [`TrainError::Io`] if a folder cannot be read or removed.
pub fn prune(folder: &Path, config: &CheckpointConfig) -> Result<(), TrainError> {
    let entries = fs::read_dir(folder).map_err(TrainError::io(folder, "read"))?;
    let mut steps: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join(MANIFEST).exists())
        .filter_map(|entry| Some((parse_step(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    steps.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (step, path) in steps.into_iter().skip(config.keep_last) {
        let is_permanent = config.keep_every > 0 && step.is_multiple_of(config.keep_every);
        if !is_permanent {
            // Renamed first, so that a partly removed folder does not count as a damaged checkpoint.
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let removed = folder.join(format!("{TEMP_PREFIX}removed-{name}"));
            fs::rename(&path, &removed).map_err(TrainError::io(&path, "rename"))?;
            fs::remove_dir_all(&removed).map_err(TrainError::io(&removed, "remove"))?;
        }
    }
    Ok(())
}

/// Renames damaged checkpoints to `damaged-step-N`, so that they neither count among the newest nor
/// block new ones. Deletes nothing.
///
/// # Errors
/// [`TrainError::Io`] if a folder cannot be renamed.
pub fn quarantine(damaged: &[DamagedCheckpoint]) -> Result<(), TrainError> {
    for DamagedCheckpoint { path, .. } in damaged {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let candidates = (0..).map(|n| match n {
            0 => path.with_file_name(format!("damaged-{name}")),
            n => path.with_file_name(format!("damaged-{name}-{n}")),
        });
        if let Some(target) = candidates.into_iter().find(|target| !target.exists()) {
            fs::rename(path, &target).map_err(TrainError::io(path, "rename"))?;
        }
    }
    Ok(())
}

/// Removes the temporary folders of a killed process, and restores a checkpoint that it was replacing.
///
/// # Errors
/// [`TrainError::Io`] if a folder cannot be read or removed.
pub fn remove_temp_folders(folder: &Path) -> Result<(), TrainError> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder, "read"))? {
        let entry = entry.map_err(TrainError::io(folder, "read"))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(TEMP_PREFIX)) else {
            continue;
        };
        let path = entry.path();
        // Killed between two renames: the older checkpoint still has its temporary name.
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
    fn prune_keeps_newest_multiples_and_foreign_folders() {
        let folder = folder(&[10, 20, 30, 40, 50]);
        fs::create_dir(folder.path().join("step-00000005")).unwrap();
        fs::create_dir(folder.path().join("foreign")).unwrap();
        let config = CheckpointConfig {
            every: 10,
            keep_last: 2,
            keep_every: 20,
        };
        prune(folder.path(), &config).unwrap();
        let expected = [
            "foreign",
            "step-00000005",
            "step-00000020",
            "step-00000040",
            "step-00000050",
        ];
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn a_quarantined_checkpoint_does_not_count_as_newest() {
        let folder = folder(&[10, 20]);
        let path = folder.path().join("step-00000020");
        let problem = String::new();
        quarantine(&[DamagedCheckpoint { path, problem }]).unwrap();
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
    fn leftovers_of_a_killed_process_are_cleaned_up() {
        let folder = folder(&[10]);
        fs::create_dir(folder.path().join(".tmp-7-step-00000030")).unwrap();
        fs::create_dir(folder.path().join(".tmp-7-step-00000020.old")).unwrap();
        fs::create_dir(folder.path().join(".tmp-7-step-00000010.old")).unwrap();
        remove_temp_folders(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["step-00000010", "step-00000020"]);
    }
}
