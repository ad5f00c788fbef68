//! Writing a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use nextword_base::atomic::AtomicFolder;
use nextword_base::hash::{FileHash, hash_file};
use nextword_model::weights::{self, FloatType};
use nextword_model::{
    Adapter, AdapterDir, BaseModel, ModelCard, ModelDir, Transformer, write_atomically,
};

use super::{
    ADAPTER_WEIGHTS, FORMAT, MANIFEST, Manifest, ManifestEntry, OPTIMIZER, STATE, State,
    TEMP_PREFIX, WEIGHTS, folder_name,
};
use crate::{Optimizer, TrainError};

/// Writes the checkpoint of `state.step` into `folder` and returns its path. Weights and moments are
/// copied from the device one tensor at a time.
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
    save_model(folder, model, &optimizer, state, tokenizer_json, card)
}

/// Where the moments of a checkpoint come from.
pub(crate) trait MomentSource {
    /// Names (`NAME.first`, `NAME.second`) and lengths of the tensors, in the order of the names.
    fn tensors(&self) -> Vec<(String, usize)>;

    /// The values of a tensor.
    fn values(&self, name: &str) -> Result<Vec<f32>, TrainError>;
}

impl MomentSource for &Optimizer {
    fn tensors(&self) -> Vec<(String, usize)> {
        self.state_tensors()
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, TrainError> {
        Ok(self.state_values(name))
    }
}

/// As [`save`], with moments from anywhere.
pub(crate) fn save_model(
    folder: &Path,
    model: &Transformer,
    moments: &dyn MomentSource,
    state: &State,
    tokenizer_json: &str,
    card: &ModelCard,
) -> Result<PathBuf, TrainError> {
    write(folder, moments, state, |new| {
        let weights = weights::save(model, &new.join(WEIGHTS))?;
        ModelDir::write_small_files(new, model.config(), tokenizer_json, card)?;
        Ok((WEIGHTS, weights))
    })
}

/// Like [`save`], of a run that trains `adapter`: the checkpoint contains the adapter and the moments of its
/// parameters, and says which model `base` is, but has neither its weights nor its tokenizer.
///
/// # Errors
/// As [`save`].
pub fn save_adapter(
    folder: &Path,
    adapter: &Adapter,
    base: &BaseModel,
    optimizer: &Optimizer,
    state: &State,
    card: &ModelCard,
) -> Result<PathBuf, TrainError> {
    save_trained_adapter(folder, adapter, base, &optimizer, state, card)
}

/// As [`save_adapter`], with moments from anywhere.
pub(crate) fn save_trained_adapter(
    folder: &Path,
    adapter: &Adapter,
    base: &BaseModel,
    moments: &dyn MomentSource,
    state: &State,
    card: &ModelCard,
) -> Result<PathBuf, TrainError> {
    write(folder, moments, state, |new| {
        let weights = AdapterDir::write(new, adapter, base, card)?;
        Ok((ADAPTER_WEIGHTS, weights))
    })
}

/// Writes the checkpoint of `state.step` into `folder`. `write_model` writes all files except those of the training and
/// returns the hash of its weights.
fn write(
    folder: &Path,
    moments: &dyn MomentSource,
    state: &State,
    write_model: impl FnOnce(&Path) -> Result<NamedHash, TrainError>,
) -> Result<PathBuf, TrainError> {
    let _span = tracing::info_span!("checkpoint", step = state.step).entered();
    fs::create_dir_all(folder).map_err(TrainError::io(folder, "create the folder"))?;
    let name = folder_name(state.step);
    let temp = folder.join(format!("{TEMP_PREFIX}{}-{name}", std::process::id()));
    let target = folder.join(name);
    let new = AtomicFolder::create_as(&target, &temp)?;
    let moments = write_moments(new.path(), moments)?;
    let hashes = [write_model(new.path())?, moments];
    write_atomically(&new.path().join(STATE), &to_json(state))?;
    let manifest = manifest(new.path(), &hashes)?;
    write_atomically(&new.path().join(MANIFEST), &to_json(&manifest))?;
    new.commit()?;
    tracing::info!(step = state.step, path = %target.display(), "checkpoint saved");
    Ok(target)
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Only numbers, strings, lists and maps with string keys: serialization cannot fail.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// The hash of a file with its name.
type NamedHash = (&'static str, FileHash);

/// Writes the moments. Returns their hash, which, as that of the weights, is the hash of the values in memory:
/// damage on the way to the disk is detected when the checkpoint is read.
fn write_moments(folder: &Path, moments: &dyn MomentSource) -> Result<NamedHash, TrainError> {
    let shapes: Vec<_> = moments
        .tensors()
        .into_iter()
        .map(|(name, len)| (name, vec![len]))
        .collect();
    let path = folder.join(OPTIMIZER);
    let moments =
        weights::write_tensors(&path, FloatType::F32, &shapes, |name| moments.values(name))?;
    Ok((OPTIMIZER, moments))
}

/// Lists every file with its size and hash. Files other than those of `hashes` are read back.
fn manifest(folder: &Path, hashes: &[NamedHash]) -> Result<Manifest, TrainError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder, "read"))? {
        let path = entry.map_err(TrainError::io(folder, "read"))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if path.is_dir() {
            continue; // Named chat templates, without which a run can resume.
        }
        let known = hashes.iter().find(|(known, _)| *known == name);
        let hash = match known {
            Some((_, hash)) => *hash,
            None => hash_file(&path).map_err(TrainError::io(&path, "read"))?,
        };
        files.push(ManifestEntry {
            name: name.to_string(),
            bytes: hash.bytes,
            sha256: hash.hex(),
        });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Manifest {
        format: FORMAT,
        files,
    })
}
