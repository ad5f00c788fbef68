//! Finding and reading the newest valid checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use nextword_model::{ModelConfig, ModelDir, Transformer, weights};

use super::{FORMAT, MANIFEST, Manifest, OPTIMIZER, STATE, State, hex_sha256, step_of};
use crate::{Optimizer, OptimizerConfig, TrainError};

/// A checkpoint whose files match its manifest.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The path of its folder.
    pub path: PathBuf,
    /// Everything besides weights and moments.
    pub state: State,
}

/// A checkpoint whose files do not match its manifest.
#[derive(Clone, Debug)]
pub struct DamagedCheckpoint {
    /// The path of its folder.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

impl std::fmt::Display for DamagedCheckpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.problem)
    }
}

/// Finds the newest valid checkpoint in `folder`, and the damaged ones that are newer.
///
/// # Errors
/// [`TrainError::Io`] if the folder cannot be read.
pub fn newest(folder: &Path) -> Result<(Option<Checkpoint>, Vec<DamagedCheckpoint>), TrainError> {
    let mut damaged = Vec::new();
    if !folder.exists() {
        return Ok((None, damaged));
    }
    let entries = fs::read_dir(folder).map_err(TrainError::io(folder, "read"))?;
    let mut steps: Vec<(u64, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((step_of(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    steps.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (_, path) in steps {
        match Checkpoint::open(&path) {
            Ok(checkpoint) => return Ok((Some(checkpoint), damaged)),
            Err(problem) => damaged.push(DamagedCheckpoint { path, problem }),
        }
    }
    Ok((None, damaged))
}

impl Checkpoint {
    /// Opens the checkpoint in `path` and verifies every file against the manifest.
    ///
    /// # Errors
    /// A description of the damage.
    pub fn open(path: &Path) -> Result<Self, String> {
        let manifest: Manifest = parse(path, MANIFEST)?;
        if manifest.format != FORMAT {
            return Err(format!("its format {} is not known here", manifest.format));
        }
        for entry in &manifest.files {
            let bytes = read(path, &entry.name)?;
            if bytes.len() as u64 != entry.bytes {
                let (found, expected) = (bytes.len(), entry.bytes);
                let name = &entry.name;
                return Err(format!("{name} has {found} bytes instead of {expected}"));
            }
            if hex_sha256(&bytes) != entry.sha256 {
                return Err(format!("{} is damaged: its sha256 differs", entry.name));
            }
        }
        for name in [
            STATE,
            OPTIMIZER,
            "model.safetensors",
            "config.json",
            "tokenizer.json",
        ] {
            if !manifest.files.iter().any(|entry| entry.name == name) {
                return Err(format!("{name} is not in its manifest"));
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            state: parse(path, STATE)?,
        })
    }

    /// Loads the model on `device`.
    ///
    /// # Errors
    /// [`TrainError::Model`] if the weights do not match `config`.
    pub fn model(&self, config: &ModelConfig, device: &Device) -> Result<Transformer, TrainError> {
        let weights_path = ModelDir::open(&self.path)?.weights_path();
        Ok(weights::load(config, &weights_path, device)?)
    }

    /// Loads the optimizer on `device`.
    ///
    /// # Errors
    /// [`TrainError::Model`] if the file is invalid.
    pub fn optimizer(
        &self,
        config: OptimizerConfig,
        device: &Device,
    ) -> Result<Optimizer, TrainError> {
        let state = weights::load_tensors(&self.path.join(OPTIMIZER))?;
        Ok(Optimizer::restore(config, self.state.step, state, device))
    }
}

/// Reads a file of the checkpoint. The name must not lead out of the folder.
fn read(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    if name.contains(['/', '\\']) || name == ".." {
        return Err(format!("its manifest names `{}`", name.escape_debug()));
    }
    fs::read(folder.join(name)).map_err(|e| format!("{name}: {e}"))
}

fn parse<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> Result<T, String> {
    serde_json::from_slice(&read(folder, name)?).map_err(|e| format!("{name}: {e}"))
}
