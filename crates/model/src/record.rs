//! A saved model: a folder that needs nothing else to generate.
//!
//! `config.json` (architecture), `model.safetensors` (weights), `tokenizer.json` (opaque here),
//! `card.json` (where the model comes from), and for chat models `chat_template.jinja`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ModelConfig, ModelError, Transformer, weights};

/// JSON files of a record are small; a larger one is not read.
const JSON_LIMIT: u64 = 1 << 20;

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Card {
    /// The run's name.
    pub name: String,
    /// The version of nextword that wrote the record.
    pub version: String,
    /// What the model was trained on, in words.
    pub trained_on: String,
    /// The run's seed.
    pub seed: u64,
    /// Optimizer steps behind these weights.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Parameters.
    pub parameters: u64,
    /// The last training loss, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// The validation loss of these weights, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// How the run's prompts are put: `{prompt}` stands for what the user types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// Put before every prompt, as the model was trained: Llama's `<s>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_id: Option<u32>,
    /// What chat templates call `bos_token` and `eos_token`, where the tokenizer's settings name them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bos_token: Option<String>,
    /// See `bos_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// Tokens that end an answer, beside the tokenizer's own end token: a chat model has one for
    /// the end of a turn too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eos_ids: Vec<u32>,
    /// Ids at the end of the model's vocabulary that its tokenizer does not have: many models pad
    /// their vocabulary to a round number.
    #[serde(skip_serializing_if = "is_zero")]
    pub unused_ids: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// A record's folder and its small files; the weights stay on disk until [`load`](Self::load).
#[derive(Clone, Debug)]
pub struct Record {
    /// The folder.
    pub path: PathBuf,
    /// The architecture.
    pub config: ModelConfig,
    /// Where the model comes from.
    pub card: Card,
}

impl Record {
    /// Reads the small files of the record in `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if the folder is no record.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = path.join("config.json");
        let config: ModelConfig = read_json(&file)?;
        config.validate().map_err(|e| ModelError::Format {
            path: file,
            problem: e.to_string(),
        })?;
        let card = path.join("card.json");
        Ok(Self {
            path: path.to_path_buf(),
            config,
            card: if card.exists() {
                read_json(&card)?
            } else {
                Card::default()
            },
        })
    }

    /// The weights' file.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// The tokenizer's file, in Hugging Face's format.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// The Jinja template that turns the messages of a chat into a prompt. Not every record has
    /// one: ask the file system.
    pub fn chat_template_path(&self) -> PathBuf {
        self.path.join("chat_template.jinja")
    }

    /// Builds the model on `device`.
    ///
    /// # Errors
    /// As [`weights::load`].
    pub fn load(&self, device: &Device) -> Result<Transformer, ModelError> {
        weights::load(&self.config, &self.weights_path(), device)
    }

    /// Writes a record as the folder `path`, whole or not at all: beside it, then renamed. An earlier
    /// record there is replaced.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be written; an earlier record is then as it was.
    pub fn save(
        path: &Path,
        model: &Transformer,
        tokenizer_json: &str,
        card: &Card,
    ) -> Result<(), ModelError> {
        Self::replace(path, |new| Self::write(new, model, tokenizer_json, card))
    }

    /// Makes the folder `path` whole or not at all: `write` fills a folder beside it, which then
    /// takes its name and the place of an earlier one.
    ///
    /// # Errors
    /// The error of `write`, or [`ModelError::Io`]; an earlier folder is then as it was.
    pub fn replace<E: From<ModelError>>(
        path: &Path,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let (new, old) = (beside(path, "new"), beside(path, "old"));
        Self::recover(path)?;
        let written = fs::create_dir_all(&new).map_err(io(&new, "create"));
        let written = written.map_err(E::from).and_then(|()| write(&new));
        if written.is_err() {
            let _ = fs::remove_dir_all(&new); // The error to tell is the first one.
            return written;
        }
        if path.exists() {
            fs::rename(path, &old).map_err(io(path, "rename"))?;
        }
        fs::rename(&new, path).map_err(io(path, "rename into"))?;
        Ok(remove(&old)?)
    }

    /// Puts things right where a process was killed while it replaced the record in `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a folder cannot be renamed or removed.
    pub fn recover(path: &Path) -> Result<(), ModelError> {
        let old = beside(path, "old");
        if old.exists() && !path.exists() {
            fs::rename(&old, path).map_err(io(path, "rename into"))?;
        }
        remove(&old)?;
        remove(&beside(path, "new"))
    }

    /// Writes a record's files into the folder `path`, which is made if need be.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be written.
    pub fn write(
        path: &Path,
        model: &Transformer,
        tokenizer_json: &str,
        card: &Card,
    ) -> Result<(), ModelError> {
        fs::create_dir_all(path).map_err(io(path, "create"))?;
        Self::write_small_files(path, model.config(), tokenizer_json, card)?;
        weights::save(model, &path.join("model.safetensors"))
    }

    /// Writes all of a record but its weights into the folder `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be written.
    pub fn write_small_files(
        path: &Path,
        config: &ModelConfig,
        tokenizer_json: &str,
        card: &Card,
    ) -> Result<(), ModelError> {
        write_atomically(&path.join("config.json"), &to_json(config))?;
        write_atomically(&path.join("tokenizer.json"), tokenizer_json.as_bytes())?;
        write_atomically(&path.join("card.json"), &to_json(card))
    }
}

/// `path` with another ending, in the same folder.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("record");
    path.with_file_name(format!(".{name}.{ending}"))
}

fn remove(path: &Path) -> Result<(), ModelError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(io(path, "remove"))?;
    }
    Ok(())
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> ModelError {
    let path = path.to_path_buf();
    move |source| ModelError::Io {
        path,
        action,
        source,
    }
}

/// Writes `bytes` to `path` whole or not at all: beside it, synced, then renamed. A link keeps pointing
/// where it does, and what is no file (a pipe, a device) is written to and not replaced.
///
/// # Errors
/// [`ModelError::Io`] with the operating system's reason.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        action: "write",
        source,
    };
    let other = |e: burn_pack::Error| io(std::io::Error::other(e.to_string()));
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return fs::write(path, bytes).map_err(io);
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let (guard, mut file) = burn_pack::AtomicFile::create(&target).map_err(other)?;
    file.write_all(bytes).map_err(io)?;
    drop(file);
    guard.commit().map_err(other)
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // These types hold numbers, strings and lists only, which JSON can always express.
    let mut json = serde_json::to_vec_pretty(value).unwrap_or_default();
    json.push(b'\n');
    json
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    };
    let format = |problem: String| ModelError::Format {
        path: path.to_path_buf(),
        problem,
    };
    let len = fs::metadata(path).map_err(io)?.len();
    if len > JSON_LIMIT {
        return Err(format(format!("{len} bytes are too many for this file")));
    }
    let bytes = fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|e| format(e.to_string()))
}
