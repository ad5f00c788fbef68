//! Writing a checkpoint.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nextword_model::{Card, Record, Transformer, weights, write_atomically};

use super::{
    FORMAT, LEFTOVER, MANIFEST, Manifest, ManifestEntry, OPTIMIZER, STATE, State, folder_name,
    hex_sha256,
};
use crate::{Optimizer, TrainError};

/// Writes the checkpoint of `state.step` into `folder` and gives back its path.
///
/// # Errors
/// If anything cannot be written; what was begun is removed, and older checkpoints stay as they
/// are.
pub fn save(
    folder: &Path,
    model: &Transformer,
    optimizer: &Optimizer,
    state: &State,
    tokenizer_json: &str,
    card: &Card,
) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(folder).map_err(TrainError::io(folder, "create the folder"))?;
    let name = folder_name(state.step);
    let scratch = folder.join(format!("{LEFTOVER}{}-{name}", std::process::id()));
    let written = write_all(&scratch, model, optimizer, state, tokenizer_json, card)
        .and_then(|()| publish(&scratch, &folder.join(&name)));
    if written.is_err() {
        let _ = fs::remove_dir_all(&scratch); // The error to tell is the first one.
    }
    written.map(|()| folder.join(name))
}

fn write_all(
    scratch: &Path,
    model: &Transformer,
    optimizer: &Optimizer,
    state: &State,
    tokenizer_json: &str,
    card: &Card,
) -> Result<(), TrainError> {
    if scratch.exists() {
        fs::remove_dir_all(scratch).map_err(TrainError::io(scratch, "remove"))?;
    }
    Record::write(scratch, model, tokenizer_json, card)?;
    let moments = optimizer.state();
    weights::save_tensors(&moments, &scratch.join(OPTIMIZER))?;
    // The state holds plain numbers, which JSON can always express.
    let json = serde_json::to_vec_pretty(state).unwrap_or_default();
    write_atomically(&scratch.join(STATE), &json)?;
    write_manifest(scratch)?;
    sync_folder(scratch)
}

/// Names every file with its size and hash. The files are read back, so that what was written is
/// what is vouched for.
fn write_manifest(scratch: &Path) -> Result<(), TrainError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(scratch).map_err(TrainError::io(scratch, "read"))? {
        let path = entry.map_err(TrainError::io(scratch, "read"))?.path();
        let bytes = fs::read(&path).map_err(TrainError::io(&path, "read"))?;
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        files.push(ManifestEntry {
            name: name.to_string(),
            bytes: bytes.len() as u64,
            sha256: hex_sha256(&bytes),
        });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest {
        format: FORMAT,
        files,
    };
    let json = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    Ok(write_atomically(&scratch.join(MANIFEST), &json)?)
}

/// Gives the finished folder its name. One that has it already is from before a resume: it is put
/// aside first, and removed last.
fn publish(scratch: &Path, target: &Path) -> Result<(), TrainError> {
    let parent = target.parent().unwrap_or(target);
    let aside = scratch.with_extension("old");
    let replaces = target.exists();
    if replaces {
        fs::rename(target, &aside).map_err(TrainError::io(target, "rename"))?;
    }
    fs::rename(scratch, target).map_err(TrainError::io(target, "rename into"))?;
    sync_folder(parent)?;
    if replaces {
        fs::remove_dir_all(&aside).map_err(TrainError::io(&aside, "remove"))?;
    }
    Ok(())
}

/// Makes the names in a folder survive a power cut. Windows offers no such call and needs none.
fn sync_folder(path: &Path) -> Result<(), TrainError> {
    if cfg!(unix) {
        File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(TrainError::io(path, "sync"))?;
    }
    Ok(())
}
