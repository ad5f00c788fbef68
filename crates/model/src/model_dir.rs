//! The model folder: a saved model with everything that generation needs.
//!
//! It contains `config.json` (architecture), `model.safetensors` (weights), `tokenizer.json` (opaque to
//! this crate), `card.json` (metadata), and for chat models `chat_template.jinja`, with further named
//! templates in `additional_chat_templates`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use nextword_base::atomic::{self, AtomicFolder};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ModelConfig, ModelError, ModelTokens, Transformer, weights};

/// Maximum size in bytes of the JSON files in a model folder.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// Maximum size in bytes of a chat template.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// The file of the usual chat template, and the folder of the others, as in transformers.
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_FOLDER: &str = "additional_chat_templates";

/// The name of a model's usual chat template in [`ModelCard::chat_templates`].
pub const DEFAULT_TEMPLATE: &str = "default";

/// Metadata of a model: its origin, its training and its special tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// The run's name.
    pub name: String,
    /// The version of nextword that wrote the model folder.
    pub version: String,
    /// A description of the training data.
    pub trained_on: String,
    /// The run's seed.
    pub seed: u64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Number of parameters.
    pub parameters: u64,
    /// The last training loss, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// The validation loss of these weights, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// How prompts are formatted; `{prompt}` is replaced by the user's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// The special tokens.
    #[serde(flatten)]
    pub special: ModelTokens,
    /// The Jinja templates that turn chat messages into a prompt, by name; the usual one is
    /// [`DEFAULT_TEMPLATE`]. They are not part of `card.json` but files of their own (see
    /// [`ModelDir::chat_template_path`]).
    #[serde(skip)]
    pub chat_templates: BTreeMap<String, String>,
    /// Number of ids at the end of the model's vocabulary that its tokenizer does not have. Many
    /// models pad their vocabulary to a round number.
    #[serde(skip_serializing_if = "is_zero")]
    pub unused_ids: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // Serde's signature.
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// A model folder and its small files. The weights stay on disk until [`load`](Self::load).
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::{ModelCard, ModelDir, presets};
///
/// let model = presets::statquest(5).init(&Device::flex(), 7)?;
/// let parent = tempfile::tempdir()?;
/// let path = parent.path().join("model");
/// let card = ModelCard { name: "example".to_owned(), seed: 7, ..ModelCard::default() };
/// ModelDir::save(&path, &model, r#"{"model": "as tokenizer.json"}"#, &card)?;
///
/// let saved = ModelDir::open(&path)?; // the weights stay on disk
/// assert_eq!((saved.config.d_model, saved.card.seed), (2, 7));
/// let loaded = saved.load(&Device::flex())?;
/// assert_eq!(loaded.token_embedding.weight.to_data(), model.token_embedding.weight.to_data());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelDir {
    /// The path of the folder.
    pub path: PathBuf,
    /// The architecture.
    pub config: ModelConfig,
    /// The metadata.
    pub card: ModelCard,
}

impl ModelDir {
    /// Reads the small files of the model folder at `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if it is not a valid model folder.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = path.join("config.json");
        let config: ModelConfig = read_json(&file)?;
        config.validate().map_err(|e| ModelError::Format {
            path: file,
            problem: e.to_string(),
        })?;
        let card_path = path.join("card.json");
        let mut card = ModelCard::default();
        if card_path.exists() {
            card = read_json(&card_path)?;
        }
        card.chat_templates = read_templates(path);
        Ok(Self {
            path: path.to_path_buf(),
            config,
            card,
        })
    }

    /// The path of the weights file.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// The path of the tokenizer file, in Hugging Face's format.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// The path of the Jinja template that turns chat messages into a prompt. The file exists only
    /// for chat models.
    pub fn chat_template_path(&self) -> PathBuf {
        self.path.join(TEMPLATE_FILE)
    }

    /// Loads the model on `device`.
    ///
    /// # Errors
    /// See [`weights::load`].
    pub fn load(&self, device: &Device) -> Result<Transformer, ModelError> {
        weights::load(&self.config, &self.weights_path(), device)
    }

    /// Writes a model folder to `path` atomically: to a folder beside it, then renamed. An earlier
    /// folder is replaced.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be written; an earlier folder is then unchanged, except as
    /// [`replace`](Self::replace) says.
    pub fn save(
        path: &Path,
        model: &Transformer,
        tokenizer_json: &str,
        card: &ModelCard,
    ) -> Result<(), ModelError> {
        Self::replace(path, |new| Self::write(new, model, tokenizer_json, card))
    }

    /// Creates or replaces the folder `path` atomically: `write` fills a folder beside it, which is
    /// then renamed.
    ///
    /// # Errors
    /// The error of `write`, or [`ModelError::Io`]; an earlier folder is then unchanged. Only if the parent
    /// cannot be synced at the end, or the earlier folder cannot be removed, the new folder is in place, and
    /// the earlier one stays beside it as `.NAME.old` until the next call or [`recover`](Self::recover).
    pub fn replace<E: From<ModelError>>(
        path: &Path,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let folder = AtomicFolder::create(path).map_err(ModelError::from)?;
        write(folder.path())?;
        Ok(folder.commit().map_err(ModelError::from)?)
    }

    /// Restores a consistent state after a process was killed while it replaced the folder `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a folder cannot be renamed or removed.
    pub fn recover(path: &Path) -> Result<(), ModelError> {
        Ok(AtomicFolder::recover(path)?)
    }

    /// Writes the files of a model into the folder `path`, which is created if necessary.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be written.
    pub fn write(
        path: &Path,
        model: &Transformer,
        tokenizer_json: &str,
        card: &ModelCard,
    ) -> Result<(), ModelError> {
        fs::create_dir_all(path).map_err(|source| ModelError::Io {
            path: path.to_path_buf(),
            action: "create",
            source,
        })?;
        Self::write_small_files(path, model.config(), tokenizer_json, card)?;
        weights::save(model, &path.join("model.safetensors"))?;
        Ok(())
    }

    /// Writes all files of a model except its weights into the folder `path`: also the chat templates of
    /// its card.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be written.
    pub fn write_small_files(
        path: &Path,
        config: &ModelConfig,
        tokenizer_json: &str,
        card: &ModelCard,
    ) -> Result<(), ModelError> {
        write_atomically(&path.join("config.json"), &to_json(config))?;
        write_atomically(&path.join("tokenizer.json"), tokenizer_json.as_bytes())?;
        write_atomically(&path.join("card.json"), &to_json(card))?;
        for (name, template) in &card.chat_templates {
            let file = if name == DEFAULT_TEMPLATE {
                path.join(TEMPLATE_FILE)
            } else {
                let folder = path.join(TEMPLATE_FOLDER);
                fs::create_dir_all(&folder).map_err(|source| ModelError::Io {
                    path: folder.clone(),
                    action: "create",
                    source,
                })?;
                folder.join(template_file(name))
            };
            write_atomically(&file, template.as_bytes())?;
        }
        Ok(())
    }
}

/// The name of the file of the chat template `name`. Characters that may not belong into a file name
/// become `_`.
fn template_file(name: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let name = name.replace(|c: char| !is_safe(c), "_");
    format!("{name}.jinja")
}

/// The chat templates in the folder `path`. Those that cannot be read are left out: a model without
/// them still generates text, and whoever needs them reads the file and reports the problem.
fn read_templates(path: &Path) -> BTreeMap<String, String> {
    let read = |file: &Path| {
        let info = fs::metadata(file).ok()?;
        let is_read = info.is_file() && info.len() <= MAX_TEMPLATE_BYTES;
        is_read.then(|| fs::read_to_string(file))?.ok()
    };
    let usual = read(&path.join(TEMPLATE_FILE)).map(|text| (DEFAULT_TEMPLATE.to_string(), text));
    let entries = fs::read_dir(path.join(TEMPLATE_FOLDER));
    let named = entries.into_iter().flatten().flatten().filter_map(|entry| {
        let file = entry.file_name();
        let name = file.to_str()?.strip_suffix(".jinja")?;
        let is_named = !name.is_empty() && name != DEFAULT_TEMPLATE;
        Some((name.to_string(), read(&entry.path()).filter(|_| is_named)?))
    });
    named.chain(usual).collect()
}

/// Writes `bytes` to `path` atomically: to a file beside it, synced, then renamed. The target of a
/// symbolic link is replaced or created, not the link. A pipe or a device is written to directly.
///
/// # Errors
/// [`ModelError::Io`] with the operating system's reason.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    atomic::write(path, bytes).map_err(|source| ModelError::Io {
        path: path.to_path_buf(),
        action: "write",
        source,
    })
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // These types contain only numbers, strings and lists, so serialization cannot fail.
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
    if len > MAX_JSON_BYTES {
        return Err(format(format!(
            "too large for a JSON file of a model folder: {len} bytes (limit: {MAX_JSON_BYTES})"
        )));
    }
    let bytes = fs::read(path).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        format(format!(
            "is damaged or not a file of a nextword model ({e}); hint: copy or save the model again"
        ))
    })
}
