//! Which model an adapter belongs to.

use std::path::Path;

use nextword_base::hash::{hash_file, sha256_hex};
use serde::{Deserialize, Serialize};

use crate::small_files::to_json;
use crate::{ModelDir, ModelError};

/// The model that an adapter was trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BaseModel {
    /// The model's name.
    pub name: String,
    /// Where it was when the adapter was trained.
    pub path_hint: String,
    /// SHA-256 of the weights file in hexadecimal digits.
    pub weights_sha256: String,
    /// SHA-256 of the configuration; empty if unknown.
    pub config_sha256: String,
    /// SHA-256 of `tokenizer.json`; empty if unknown.
    pub tokenizer_sha256: String,
    /// Bits per weight of the blocks, if they are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u8>,
}

impl BaseModel {
    /// Describes `model`, which takes reading its weights file once.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if a file cannot be read; [`ModelError::Adapter`] if `model` is an
    /// adapter with its base.
    ///
    /// ```
    /// use nextword_model::{BaseModel, ModelDir};
    ///
    /// let model = ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// let base = BaseModel::of(&model)?;
    /// assert_eq!((base.weights_sha256.len(), base.bits), (64, None));
    /// base.check(&model)?; // it is the same model
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn of(model: &ModelDir) -> Result<Self, ModelError> {
        if model.base().is_some() {
            return Err(ModelError::adapter(
                format!(
                    "`{}` is an adapter, which cannot be the base of another one",
                    model.path.display()
                ),
                "merge it into its base first with `nextword merge`",
            ));
        }
        let (bits, _) = model.bits()?;
        let (config_sha256, tokenizer_sha256) = (config_sha256(model)?, tokenizer_sha256(model)?);
        let folder = || {
            let name = model.path.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let name = Some(model.card.name.clone()).filter(|name| !name.is_empty());
        Ok(Self {
            name: name.unwrap_or_else(folder),
            path_hint: model.path.display().to_string(),
            weights_sha256: file_sha256(&model.weights_path())?,
            config_sha256,
            tokenizer_sha256,
            bits,
        })
    }

    /// Whether `model` has the configuration and the tokenizer of this model. Does not read its weights, which may
    /// still be others.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read.
    pub fn has_small_files_of(&self, model: &ModelDir) -> Result<bool, ModelError> {
        Ok(config_sha256(model)? == self.config_sha256
            && tokenizer_sha256(model)? == self.tokenizer_sha256)
    }

    /// Checks that `model` has the weights that the adapter was trained on.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] if it does not; errors from reading its files.
    pub fn check(&self, model: &ModelDir) -> Result<(), ModelError> {
        let found = file_sha256(&model.weights_path())?;
        if found == self.weights_sha256 {
            return Ok(());
        }
        Err(ModelError::Adapter {
            problem: format!(
                "the adapter was made for {} (SHA-256 of the weights {}), and {} is another model ({})",
                self.name,
                short(&self.weights_sha256),
                model.path.display(),
                short(&found),
            ),
            hint: "name the model that the adapter was trained on".to_string(),
        })
    }
}

/// The first digits of a hash, for messages.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn config_sha256(model: &ModelDir) -> Result<String, ModelError> {
    match model.tokenizer_json() {
        Some(_) => Ok(sha256_hex(&to_json(&model.config))),
        None => file_sha256(&model.path.join("config.json")),
    }
}

/// Empty if the model has no tokenizer.
fn tokenizer_sha256(model: &ModelDir) -> Result<String, ModelError> {
    match model.tokenizer_json() {
        Some(json) => Ok(sha256_hex(json.as_bytes())),
        None if model.tokenizer_path().exists() => file_sha256(&model.tokenizer_path()),
        None => Ok(String::new()),
    }
}

fn file_sha256(path: &Path) -> Result<String, ModelError> {
    let hash = hash_file(path).map_err(|source| ModelError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    })?;
    Ok(hash.hex())
}
