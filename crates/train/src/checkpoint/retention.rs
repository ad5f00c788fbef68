//! Which checkpoints stay.

use std::fs;
use std::path::Path;

use super::{LEFTOVER, MANIFEST, step_of};
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
            fs::remove_dir_all(&path).map_err(TrainError::io(&path, "remove"))?;
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
