//! The run folder: its layout, and the lock that excludes a second process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::{RunConfig, TrainError, read_config, to_toml};

/// A run folder, locked by this process for the lifetime of this value.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Closing the file releases the lock.
    _lock: File,
}

impl RunFolder {
    /// Creates the folder of a new run and writes its resolved configuration.
    ///
    /// # Errors
    /// [`TrainError::Run`] if the folder already contains a run, or another process uses it.
    pub fn create(path: &Path, config: &RunConfig) -> Result<Self, TrainError> {
        fs::create_dir_all(path).map_err(TrainError::io(path, "create the folder"))?;
        let folder = Self::lock(path)?;
        if folder.config_path().exists() {
            let shown = path.display();
            return Err(TrainError::run(
                path,
                format!(
                    "this folder already contains a run; hint: continue it with \
                     `nextword resume {shown}`, or choose another name with --set name=NAME"
                ),
            ));
        }
        folder.write_config(config)?;
        Ok(folder)
    }

    /// Writes the resolved configuration with absolute paths, so that the run can be resumed from any
    /// working directory.
    fn write_config(&self, config: &RunConfig) -> Result<(), TrainError> {
        let mut config = config.clone();
        if let Ok(working_dir) = std::env::current_dir() {
            config.data.resolve_paths(&working_dir);
            config.start_from = config.start_from.map(|path| working_dir.join(path));
        }
        let text = to_toml(&config)?;
        Ok(nextword_model::write_atomically(
            &self.config_path(),
            text.as_bytes(),
        )?)
    }

    /// Makes the run independent of the model that it started from: copies the tokenizer and removes
    /// `start_from`. The weights must already be in a checkpoint.
    pub(crate) fn detach_from_source(
        &self,
        config: &RunConfig,
        tokenizer_json: &str,
    ) -> Result<(), TrainError> {
        let mut config = config.clone();
        config.start_from = None;
        let tokenizer = self.path.join("tokenizer.json");
        nextword_model::write_atomically(&tokenizer, tokenizer_json.as_bytes())?;
        if config.data.prepared.is_none() {
            config.data.tokenizer.file = Some(tokenizer);
        }
        self.write_config(&config)
    }

    /// Opens the folder of an existing run.
    ///
    /// # Errors
    /// [`TrainError::Run`] if the folder does not contain a run, or another process uses it.
    pub fn open(path: &Path) -> Result<(Self, RunConfig), TrainError> {
        if !path.join("run.toml").exists() {
            return Err(TrainError::run(
                path,
                "not a run folder (run.toml is missing); hint: start a run with \
                 `nextword train CONFIG`",
            ));
        }
        let folder = Self::lock(path)?;
        let config = read_config(&folder.config_path(), &[])?;
        Ok((folder, config))
    }

    fn lock(path: &Path) -> Result<Self, TrainError> {
        let file = path.join("run.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(TrainError::io(&file, "open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_path_buf(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(TrainError::run(
                path,
                "another process is training in this folder; hint: wait for it to finish, or stop it",
            )),
            Err(TryLockError::Error(source)) => Err(TrainError::io(&file, "lock")(source)),
        }
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// The path of the metrics: one [`MetricsLine`](crate::MetricsLine) per line.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The path of the checkpoints.
    pub fn checkpoints_path(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The path of the model with the lowest validation loss.
    pub fn best_path(&self) -> PathBuf {
        self.path.join("best")
    }

    /// The path of the newest model.
    pub fn last_path(&self) -> PathBuf {
        self.path.join("last")
    }

    /// The path of the text samples generated during training.
    pub fn samples_path(&self) -> PathBuf {
        self.path.join("samples")
    }
}
