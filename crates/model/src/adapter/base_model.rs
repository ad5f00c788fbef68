//! Which model an adapter belongs to.

use std::path::Path;

use nextword_base::hash::{hash_file, sha256_hex};
use serde::{Deserialize, Serialize};

use crate::model_dir::to_json;
use crate::{Bits, ModelDir, ModelError};

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
    /// [`ModelError::Io`] or [`ModelError::Format`] if a file cannot be read.
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
        let (bits, _) = model.bits()?;
        let (config_sha256, tokenizer_sha256) = settings_sha256(model)?;
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
            bits: bits.map(|bits| match bits {
                Bits::Int8 => 8,
                Bits::Int4 => 4,
            }),
        })
    }

    /// Whether `model` has the configuration and the tokenizer of this one, which takes reading no weights.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read.
    pub fn has_settings_of(&self, model: &ModelDir) -> Result<bool, ModelError> {
        let (config, tokenizer) = settings_sha256(model)?;
        Ok(config == self.config_sha256 && tokenizer == self.tokenizer_sha256)
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

/// The hashes of a model's configuration and of its tokenizer.
fn settings_sha256(model: &ModelDir) -> Result<(String, String), ModelError> {
    if let Some(json) = model.tokenizer_json() {
        let config = sha256_hex(&to_json(&model.config));
        return Ok((config, sha256_hex(json.as_bytes())));
    }
    let tokenizer = if model.tokenizer_path().exists() {
        file_sha256(&model.tokenizer_path())?
    } else {
        String::new()
    };
    Ok((file_sha256(&model.path.join("config.json"))?, tokenizer))
}

/// The first digits of a hash, for messages.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn file_sha256(path: &Path) -> Result<String, ModelError> {
    let hash = hash_file(path).map_err(|source| ModelError::Io {
        path: path.to_path_buf(),
        action: "read",
        source,
    })?;
    Ok(hash.hex())
}
