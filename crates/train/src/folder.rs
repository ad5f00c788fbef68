//! The run folder: its layout, and the lock that excludes a second process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Component, Path, PathBuf};

use nextword_convert::find_base;
use nextword_data::{is_pairs_name, is_template_name};
use nextword_model::{AdapterDir, ModelDir};

use crate::{RunConfig, TrainError, parse_stored_config, to_toml, unstarted};

/// The file whose lock excludes a second process.
const LOCK: &str = "run.lock";

/// A run folder, locked by this process for the lifetime of this value.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Identifies the folder, to detect that it was removed.
    id: Option<(u64, u64)>,
    /// Closing the file releases the lock.
    lock: File,
}

impl RunFolder {
    /// Creates the folder of a new run and writes its resolved configuration. A run in it that was stopped before its first
    /// update is replaced (see [`is_unstarted`](crate::is_unstarted)).
    ///
    /// # Errors
    /// [`TrainError::Run`] if the folder already contains a run, [`TrainError::FolderInUse`] if another process uses it.
    pub fn create(path: &Path, config: &RunConfig) -> Result<Self, TrainError> {
        fs::create_dir_all(path).map_err(TrainError::io(path, "create the folder"))?;
        let folder = Self::lock(path)?;
        if unstarted::is_unstarted(path) {
            unstarted::clear(path)?;
        }
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

    /// Checks that no process uses the folder `path` of a run, if there is one.
    ///
    /// # Errors
    /// [`TrainError::FolderInUse`] if one does.
    pub fn check_unused(path: &Path) -> Result<(), TrainError> {
        if path.join(LOCK).exists() {
            Self::lock(path)?;
        }
        Ok(())
    }

    /// Writes the resolved configuration, so that the run can be resumed from any working directory and
    /// together with its data from any other place: files in the run's folder are named relative to it, those in
    /// the working directory too if the folder is also in that, and those whose stored path is relative keep that.
    /// All others have absolute paths.
    ///
    /// # Errors
    /// [`TrainError::Model`] if the file cannot be written.
    pub(crate) fn write_config(&self, config: &RunConfig) -> Result<(), TrainError> {
        let mut config = config.clone();
        if let Ok(working_dir) = std::env::current_dir() {
            let stored = self.stored_relative_paths(&working_dir);
            config.data.resolve_paths(&working_dir);
            config.validation.resolve_paths(&working_dir);
            config.start_from = config.start_from.map(|path| working_dir.join(path));
            for path in paths(&mut config) {
                let file = canonical(path);
                let same = stored.iter().find(|(earlier, _)| *earlier == file);
                let relative = same
                    .map(|(_, relative)| relative.clone())
                    .or_else(|| portable_path(path, &self.path, &working_dir));
                if let Some(relative) = relative {
                    *path = relative;
                }
            }
        }
        let text = to_toml(&config)?;
        Ok(nextword_model::write_atomically(
            &self.config_path(),
            text.as_bytes(),
        )?)
    }

    /// The files that the stored configuration, if there is one, names relative to the run's folder, and how.
    fn stored_relative_paths(&self, working_dir: &Path) -> Vec<(PathBuf, PathBuf)> {
        let Ok(mut config) = self.parse_config() else {
            return Vec::new();
        };
        let folder = working_dir.join(&self.path);
        let relative = paths(&mut config).filter(|path| path.is_relative());
        let files = relative.map(|path| (canonical(&folder.join(&*path)), path.clone()));
        files.collect()
    }

    /// Makes the run independent of the model that it started from: copies the tokenizer and removes
    /// `start_from`. The weights must already be in a checkpoint.
    pub(crate) fn detach_from_source(
        &self,
        config: &RunConfig,
        tokenizer_json: &str,
    ) -> Result<(), TrainError> {
        nextword_model::write_atomically(&self.tokenizer_path(), tokenizer_json.as_bytes())?;
        self.write_config(&self.detached(config, None))
    }

    /// `config` without the model that it starts from, with the run's own tokenizer instead of that model's; with the model
    /// in `base` and its tokenizer if the run adapts that. The stored device stays: that of `config` may be the one that
    /// this rank has, or that of this resume only.
    pub(crate) fn detached(&self, config: &RunConfig, base: Option<&ModelDir>) -> RunConfig {
        let mut config = config.clone();
        if let Ok(stored) = self.parse_config() {
            config.device = stored.device;
        }
        config.start_from = base.map(|base| base.path.clone());
        if let Some(base) = base {
            config.data.tokenizer.file = Some(base.tokenizer_path());
            return config;
        }
        if config.data.prepared.is_none() {
            config.data.tokenizer.file = Some(self.tokenizer_path());
        }
        config
    }

    /// The tokenizer of a run that started from a model.
    fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// Finds the model that a run with `[lora]` adapts, if it is no longer where it was, by its hash: at the stored
    /// place relative to the run, or beside it under another name. Its tokenizer is that of the model, wherever it is.
    /// Does nothing for other runs.
    ///
    /// # Errors
    /// [`TrainError::Convert`] if it is not found.
    pub fn locate_base(&self, config: &mut RunConfig) -> Result<(), TrainError> {
        let Some(path) = config.start_from.as_ref().filter(|_| config.lora.is_some()) else {
            return Ok(());
        };
        config.data.tokenizer.file = None;
        if path.exists() {
            return Ok(());
        }
        let saved = [self.last_path(), self.best_path()];
        if let Some(saved) = saved.iter().find(|path| AdapterDir::is_adapter(path)) {
            let adapter = AdapterDir::open(saved)?;
            config.start_from = Some(find_base(&adapter, None)?.path);
        }
        Ok(())
    }

    /// Opens the folder of an existing run.
    ///
    /// # Errors
    /// [`TrainError::Run`] if the folder does not contain a run, [`TrainError::FolderInUse`] if another process uses it.
    pub fn open(path: &Path) -> Result<(Self, RunConfig), TrainError> {
        if !path.join("run.toml").exists() {
            return Err(TrainError::run(
                path,
                "not a run folder (run.toml is missing); hint: start a run with \
                 `nextword train CONFIG`",
            ));
        }
        let folder = Self::lock(path)?;
        let config = folder.read_config()?;
        Ok((folder, config))
    }

    /// Reads the stored configuration. Paths relative to the run's folder are resolved; other relative ones, of
    /// earlier versions, stay relative to the working directory.
    pub(crate) fn read_config(&self) -> Result<RunConfig, TrainError> {
        Self::stored_config(&self.path)
    }

    /// Reads the configuration of the run in `path` as [`open`](Self::open) does, without locking the folder: also while
    /// the run is training.
    ///
    /// # Errors
    /// [`TrainError::Io`] and [`TrainError::ConfigFile`] if there is no run in `path`, or if its configuration is damaged.
    pub fn stored_config(path: &Path) -> Result<RunConfig, TrainError> {
        let mut config = parse_stored(path)?;
        for file in paths(&mut config).filter(|file| file.is_relative()) {
            let resolved = path.join(&*file);
            match fs::canonicalize(&resolved) {
                Ok(found) => *file = found,
                Err(_) if !file.exists() => *file = resolved,
                Err(_) => {}
            }
        }
        config.run_folder = Some(path.to_path_buf());
        Ok(config)
    }

    /// Reads the stored configuration with its paths as they are.
    fn parse_config(&self) -> Result<RunConfig, TrainError> {
        parse_stored(&self.path)
    }

    /// Checks that the folder is still the one that was locked: neither removed nor moved nor replaced.
    ///
    /// # Errors
    /// [`TrainError::FolderRemoved`].
    pub(crate) fn check_exists(&self) -> Result<(), TrainError> {
        let same_folder = file_id(fs::metadata(&self.path)) == self.id;
        // The number of a removed folder may be used for a new one, that of an open file may not.
        let lock_path = self.path.join(LOCK);
        let same_lock = !lock_path.exists()
            || file_id(fs::metadata(lock_path)) == file_id(self.lock.metadata());
        if self.config_path().exists() && same_folder && same_lock {
            return Ok(());
        }
        Err(TrainError::FolderRemoved {
            folder: self.path.clone(),
        })
    }

    fn lock(path: &Path) -> Result<Self, TrainError> {
        let file = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(TrainError::io(&file, "open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_path_buf(),
                id: file_id(fs::metadata(path)),
                lock,
            }),
            Err(TryLockError::WouldBlock) => Err(TrainError::FolderInUse {
                folder: path.to_path_buf(),
            }),
            Err(TryLockError::Error(source)) => Err(TrainError::io(&file, "lock")(source)),
        }
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        config_path(&self.path)
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

    /// The path of the log probabilities of the reference, in runs on preferences.
    pub(crate) fn reference_path(&self) -> PathBuf {
        self.path.join("reference.bin")
    }

    /// The path of the text samples generated during training.
    pub fn samples_path(&self) -> PathBuf {
        self.path.join("samples")
    }
}

/// The path of the configuration of the run in `folder`.
fn config_path(folder: &Path) -> PathBuf {
    folder.join("run.toml")
}

/// Reads the configuration of the run in `folder` with its paths as they are.
fn parse_stored(folder: &Path) -> Result<RunConfig, TrainError> {
    let file = config_path(folder);
    let text = fs::read_to_string(&file).map_err(TrainError::io(&file, "read"))?;
    parse_stored_config(&text, &file, &[])
}

/// The paths of files that a run reads.
fn paths(config: &mut RunConfig) -> impl Iterator<Item = &mut PathBuf> {
    let data = &mut config.data;
    let sources = data.path.iter_mut().chain(&mut data.paths);
    let others = data.prepared.iter_mut().chain(&mut data.tokenizer.file);
    let template = data.chat_template.iter_mut();
    let template = template.filter(|name| !is_template_name(name));
    let conversations = data.conversations.iter_mut().chain(template);
    let pairs = data.pairs.iter_mut();
    let pairs = pairs.filter(|path| !is_pairs_name(path));
    let other_texts = config.validation.also.iter_mut();
    let other_texts = other_texts.map(|text| &mut text.path);
    let all = sources
        .chain(others)
        .chain(conversations)
        .chain(pairs)
        .chain(other_texts)
        .chain(&mut config.start_from);
    all.filter(|path| path.as_os_str() != "-")
}

/// `path` without symbolic links, as far as it exists.
fn canonical(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The path of `file` relative to `folder`, if it is in that folder, or both are in `base`.
fn portable_path(file: &Path, folder: &Path, base: &Path) -> Option<PathBuf> {
    // Without symbolic links: `..` after a link leads to the parent of its target.
    let [file, folder, base] = [file, folder, base].map(|path| fs::canonicalize(path).ok());
    let (file, folder, base) = (file?, folder?, base?);
    if file != folder
        && let Ok(inside) = file.strip_prefix(&folder)
    {
        return Some(inside.to_path_buf());
    }
    // Everything is below the root, which says nothing about what moves together.
    if base.parent().is_none() || !file.starts_with(&base) || !folder.starts_with(&base) {
        return None;
    }
    let shared = file
        .components()
        .zip(folder.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = folder
        .components()
        .skip(shared)
        .map(|_| Component::ParentDir);
    Some(up.chain(file.components().skip(shared)).collect())
}

/// Identifies a file or folder on this machine; `None` if it does not exist or the system has no such numbers.
fn file_id(metadata: std::io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        metadata.ok().map(|found| (found.dev(), found.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
