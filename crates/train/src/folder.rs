//! A run's folder: where everything is, and the lock that keeps two writers apart.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::{RunConfig, TrainError, read_config, to_toml};

/// A run's folder, held by this process alone as long as this value lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held for its lock, which ends when the file is closed.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder of a new run and writes its resolved configuration.
    ///
    /// # Errors
    /// [`TrainError::Run`] if there is a run already, or another process works in it.
    pub fn create(path: &Path, config: &RunConfig) -> Result<Self, TrainError> {
        fs::create_dir_all(path).map_err(TrainError::io(path, "create the folder"))?;
        let folder = Self::lock(path)?;
        if folder.config_path().exists() {
            let shown = path.display();
            return Err(TrainError::run(
                path,
                format!(
                    "there is a run in this folder already; hint: continue it with \
                     `nextword resume {shown}`, or give the new run another --set name=NAME"
                ),
            ));
        }
        folder.write_config(config)?;
        Ok(folder)
    }

    /// Writes the resolved configuration with absolute paths, so that the run resumes from any
    /// folder.
    fn write_config(&self, config: &RunConfig) -> Result<(), TrainError> {
        let mut config = config.clone();
        if let Ok(here) = std::env::current_dir() {
            config.data.resolve_paths(&here);
            config.start_from = config.start_from.map(|path| here.join(path));
        }
        let text = to_toml(&config)?;
        Ok(nextword_model::write_atomically(
            &self.config_path(),
            text.as_bytes(),
        )?)
    }

    /// Makes the run independent of the record that it started from: the tokenizer is copied, and
    /// `start_from` forgotten. For when a checkpoint holds the weights.
    pub(crate) fn settle(
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

    /// Opens the folder of a run that was begun before.
    ///
    /// # Errors
    /// [`TrainError::Run`] if there is none, or another process works in it.
    pub fn open(path: &Path) -> Result<(Self, RunConfig), TrainError> {
        if !path.join("run.toml").exists() {
            return Err(TrainError::run(
                path,
                "this is no run's folder: it holds no run.toml; hint: begin one with \
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
                "another process trains in this folder; hint: wait for it, or stop it first",
            )),
            Err(TryLockError::Error(source)) => Err(TrainError::io(&file, "lock")(source)),
        }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("run.toml")
    }

    /// One JSON object a line: see [`MetricsLine`](crate::MetricsLine).
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Training states.
    pub fn checkpoints_path(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The record with the lowest validation loss.
    pub fn best_path(&self) -> PathBuf {
        self.path.join("best")
    }

    /// The newest record.
    pub fn last_path(&self) -> PathBuf {
        self.path.join("last")
    }

    /// Text sampled while the model learned.
    pub fn samples_path(&self) -> PathBuf {
        self.path.join("samples")
    }
}
