//! Writing a checkpoint.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nextword_model::{ModelCard, ModelDir, Transformer, weights, write_atomically};

use super::{
    FORMAT, MANIFEST, Manifest, ManifestEntry, OPTIMIZER, STATE, State, TEMP_PREFIX, folder_name,
    hex_sha256,
};
use crate::{Optimizer, TrainError};

/// Writes the checkpoint of `state.step` into `folder` and returns its path.
///
/// # Errors
/// If a file cannot be written. The incomplete checkpoint is removed, and older ones stay unchanged.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::{ModelCard, presets};
/// use nextword_train::{Optimizer, OptimizerConfig, checkpoint};
///
/// let folder = tempfile::tempdir()?;
/// let model = presets::statquest(5).init(&Device::flex(), 7)?;
/// let optimizer = Optimizer::new(OptimizerConfig::default());
/// let state = checkpoint::State { format: 1, step: 100, ..Default::default() };
/// let card = ModelCard::default();
/// let path = checkpoint::save(folder.path(), &model, &optimizer, &state, "{}", &card)?;
/// assert!(path.ends_with("step-00000100"));
///
/// std::fs::write(path.join("model.safetensors"), "damaged")?;
/// let (newest, damaged) = checkpoint::newest(folder.path())?;
/// assert!(newest.is_none() && damaged[0].problem.contains("model.safetensors"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save(
    folder: &Path,
    model: &Transformer,
    optimizer: &Optimizer,
    state: &State,
    tokenizer_json: &str,
    card: &ModelCard,
) -> Result<PathBuf, TrainError> {
    fs::create_dir_all(folder).map_err(TrainError::io(folder, "create the folder"))?;
    let name = folder_name(state.step);
    let temp = folder.join(format!("{TEMP_PREFIX}{}-{name}", std::process::id()));
    let written = write_files(&temp, model, optimizer, state, tokenizer_json, card)
        .and_then(|()| publish(&temp, &folder.join(&name)));
    if written.is_err() {
        let _ = fs::remove_dir_all(&temp); // The first error is the one to report.
    }
    written.map(|()| folder.join(name))
}

fn write_files(
    temp: &Path,
    model: &Transformer,
    optimizer: &Optimizer,
    state: &State,
    tokenizer_json: &str,
    card: &ModelCard,
) -> Result<(), TrainError> {
    if temp.exists() {
        fs::remove_dir_all(temp).map_err(TrainError::io(temp, "remove"))?;
    }
    ModelDir::write(temp, model, tokenizer_json, card)?;
    let moments = optimizer.state();
    weights::save_tensors(&moments, &temp.join(OPTIMIZER))?;
    // The state contains only numbers and strings, so serialization cannot fail.
    let json = serde_json::to_vec_pretty(state).unwrap_or_default();
    write_atomically(&temp.join(STATE), &json)?;
    write_manifest(temp)?;
    sync_folder(temp)
}

/// Lists every file with its size and hash. The files are read back, so that the hashes are those of
/// the bytes on disk.
fn write_manifest(temp: &Path) -> Result<(), TrainError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(temp).map_err(TrainError::io(temp, "read"))? {
        let path = entry.map_err(TrainError::io(temp, "read"))?.path();
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
    Ok(write_atomically(&temp.join(MANIFEST), &json)?)
}

/// Renames the finished folder to `target`. An existing one, from before a resume, is renamed first and
/// removed last.
fn publish(temp: &Path, target: &Path) -> Result<(), TrainError> {
    let parent = target.parent().unwrap_or(target);
    let old = temp.with_extension("old");
    let replaces = target.exists();
    if replaces {
        fs::rename(target, &old).map_err(TrainError::io(target, "rename"))?;
    }
    fs::rename(temp, target).map_err(TrainError::io(target, "rename into"))?;
    sync_folder(parent)?;
    if replaces {
        fs::remove_dir_all(&old).map_err(TrainError::io(&old, "remove"))?;
    }
    Ok(())
}

/// Syncs the entries of a folder to disk. Windows has no such call and needs none.
fn sync_folder(path: &Path) -> Result<(), TrainError> {
    if cfg!(unix) {
        File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(TrainError::io(path, "sync"))?;
    }
    Ok(())
}
