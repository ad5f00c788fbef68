//! Finding and reading the newest valid checkpoint.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use nextword_base::hash::hash_reader;
use nextword_model::weights::{self, TensorFile};
use nextword_model::{AdapterDir, ModelCard, ModelConfig, ModelDir, Transformer};
use serde::Deserialize;

use super::{
    ADAPTER, ADAPTER_WEIGHTS, FORMAT, MANIFEST, Manifest, OPTIMIZER, STATE, State, WEIGHTS,
    parse_step,
};
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
/// As [`Checkpoint::open`], except [`TrainError::Damaged`]; [`TrainError::Io`] if the folder cannot be
/// read.
pub fn newest(folder: &Path) -> Result<(Option<Checkpoint>, Vec<DamagedCheckpoint>), TrainError> {
    let mut damaged = Vec::new();
    if !folder
        .try_exists()
        .map_err(TrainError::io(folder, "read"))?
    {
        return Ok((None, damaged));
    }
    let mut steps: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder, "read"))? {
        let entry = entry.map_err(TrainError::io(folder, "read"))?;
        if let Some(step) = entry.file_name().to_str().and_then(parse_step) {
            steps.push((step, entry.path()));
        }
    }
    steps.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    for (_, path) in steps {
        match Checkpoint::open(&path) {
            Ok(checkpoint) => return Ok((Some(checkpoint), damaged)),
            Err(TrainError::Damaged { problem, .. }) => {
                damaged.push(DamagedCheckpoint { path, problem });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((None, damaged))
}

impl Checkpoint {
    /// Opens the checkpoint in `path` and verifies every file against the manifest.
    ///
    /// # Errors
    /// [`TrainError::Damaged`] if a file does not match the manifest, or the manifest is missing or
    /// invalid; [`TrainError::Run`] if a newer version of nextword wrote the checkpoint;
    /// [`TrainError::Io`] if a file cannot be read.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let _span = tracing::info_span!("checkpoint", path = %path.display()).entered();
        let damaged = |problem: String| TrainError::Damaged {
            path: path.to_path_buf(),
            problem,
        };
        let invalid = |e: serde_json::Error| damaged(format!("{MANIFEST}: {e}"));
        let manifest = read(path, MANIFEST, read_to_end)?;
        // Parsed first: the other fields of a newer format may differ.
        let Header { format } = serde_json::from_slice(&manifest).map_err(invalid)?;
        if format > FORMAT {
            let problem = format!(
                "this checkpoint was written by a newer version of nextword (format {format}; this \
                 version reads format {FORMAT}); hint: resume with that version"
            );
            return Err(TrainError::run(path, problem));
        }
        if format < FORMAT {
            return Err(damaged(format!("{MANIFEST}: unknown format {format}")));
        }
        let manifest: Manifest = serde_json::from_slice(&manifest).map_err(invalid)?;
        for entry in &manifest.files {
            let found = read(path, &entry.name, hash_reader)?;
            if found.bytes != entry.bytes {
                let (found, expected) = (found.bytes, entry.bytes);
                let name = &entry.name;
                return Err(damaged(format!(
                    "{name} has {found} bytes instead of {expected}"
                )));
            }
            if found.hex() != entry.sha256 {
                let problem = format!("{} does not match its SHA-256 in the manifest", entry.name);
                return Err(damaged(problem));
            }
        }
        let is_listed = |name: &str| manifest.files.iter().any(|entry| entry.name == name);
        let model: &[&str] = if is_listed(ADAPTER) {
            &[ADAPTER_WEIGHTS]
        } else {
            &[WEIGHTS, "config.json", "tokenizer.json"]
        };
        for name in [STATE, OPTIMIZER].iter().chain(model) {
            if !is_listed(name) {
                return Err(damaged(format!("{name} is missing from the manifest")));
            }
        }
        // The hash matches, so a parse error is not damage.
        let state = serde_json::from_slice(&read(path, STATE, read_to_end)?)
            .map_err(|e| TrainError::run(path.join(STATE), format!("invalid: {e}")))?;
        Ok(Self {
            path: path.to_path_buf(),
            state,
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

    /// Opens the adapter of a run with `[lora]`.
    ///
    /// # Errors
    /// [`TrainError::Model`] if it is invalid.
    pub fn adapter(&self) -> Result<AdapterDir, TrainError> {
        Ok(AdapterDir::open(&self.path)?)
    }

    /// The model card.
    pub(crate) fn card(&self) -> Result<ModelCard, TrainError> {
        if self.path.join(ADAPTER).is_file() {
            return Ok(self.adapter()?.card);
        }
        Ok(ModelDir::open(&self.path)?.card)
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
        let state = self.moments()?;
        Ok(Optimizer::restore(config, self.state.step, &state, device)?)
    }
}

impl Checkpoint {
    /// The moments, to be read tensor by tensor.
    pub(crate) fn moments(&self) -> Result<TensorFile, TrainError> {
        Ok(TensorFile::open(&self.path.join(OPTIMIZER))?)
    }
}

/// The part of a manifest that all formats share.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// Reads a file of the checkpoint with `parse`. A missing file counts as damage, other I/O
/// errors do not. The name must not lead out of the folder.
fn read<T>(
    folder: &Path,
    name: &str,
    parse: impl FnOnce(&mut File) -> io::Result<T>,
) -> Result<T, TrainError> {
    let damaged = |problem| TrainError::Damaged {
        path: folder.to_path_buf(),
        problem,
    };
    if name.contains(['/', '\\']) || name == ".." {
        let problem = format!("{MANIFEST}: invalid file name `{}`", name.escape_debug());
        return Err(damaged(problem));
    }
    let path = folder.join(name);
    let parsed = File::open(&path).and_then(|mut file| parse(&mut file));
    parsed.map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => damaged(format!("{name} is missing")),
        _ => TrainError::io(&path, "read")(e),
    })
}

fn read_to_end(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_base::hash::sha256_hex;

    use super::*;
    use crate::checkpoint::{ManifestEntry, folder_name};

    const FILES: [&str; 5] = [
        STATE,
        OPTIMIZER,
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    ];

    fn checkpoint(folder: &Path, step: u64) -> PathBuf {
        let path = folder.join(folder_name(step));
        fs::create_dir(&path).unwrap();
        let state = State {
            step,
            ..State::default()
        };
        let bytes = serde_json::to_vec(&state).unwrap();
        let files = FILES.map(|name| {
            fs::write(path.join(name), &bytes).unwrap();
            ManifestEntry {
                name: name.to_string(),
                bytes: bytes.len() as u64,
                sha256: sha256_hex(&bytes),
            }
        });
        let manifest = Manifest {
            format: FORMAT,
            files: files.into(),
        };
        fs::write(path.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        path
    }

    fn steps(folder: &Path) -> (Option<u64>, usize) {
        let (found, damaged) = newest(folder).unwrap();
        (found.map(|found| found.state.step), damaged.len())
    }

    #[test]
    fn io_error_does_not_count_as_damage() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(folder.path(), 1);
        let path = checkpoint(folder.path(), 2);
        assert_eq!(steps(folder.path()), (Some(2), 0));
        // Reading a directory fails, also for root.
        let file = path.join("config.json");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let error = newest(folder.path()).unwrap_err();
        assert!(matches!(error, TrainError::Io { .. }), "{error}");
        assert!(
            error.to_string().starts_with(file.to_str().unwrap()),
            "{error}"
        );
    }

    #[test]
    fn newer_format_is_an_error_but_not_damage() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(folder.path(), 1);
        let path = checkpoint(folder.path(), 2);
        fs::write(path.join(MANIFEST), r#"{"format": 2, "shards": []}"#).unwrap();
        let error = newest(folder.path()).unwrap_err();
        assert!(matches!(error, TrainError::Run { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("written by a newer version of nextword"),
            "{error}"
        );
    }

    #[test]
    fn files_not_matching_the_manifest_count_as_damage() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(folder.path(), 1);
        let path = checkpoint(folder.path(), 2);
        for name in FILES.into_iter().chain([MANIFEST]) {
            let file = path.join(name);
            let bytes = fs::read(&file).unwrap();
            let mut flipped = bytes.clone();
            flipped[0] ^= 1;
            for contents in [&flipped[..], &bytes[1..]] {
                fs::write(&file, contents).unwrap();
                assert_eq!(steps(folder.path()), (Some(1), 1), "{name}");
            }
            fs::remove_file(&file).unwrap();
            assert_eq!(steps(folder.path()), (Some(1), 1), "{name}");
            fs::write(&file, bytes).unwrap();
        }
        assert_eq!(steps(folder.path()), (Some(2), 0));
    }
}
