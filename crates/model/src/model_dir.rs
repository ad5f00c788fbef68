//! The model folder: a saved model with everything that generation needs.
//!
//! It contains `config.json` (architecture), `model.safetensors` (weights), `tokenizer.json` (opaque to
//! this crate), `card.json` (metadata), and for chat models `chat_template.jinja`, with further named
//! templates in `additional_chat_templates`. A model can also be a single file of another format.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use nextword_base::atomic::AtomicFolder;

use crate::chat_templates::{TEMPLATE_FILE, write_chat_templates};
use crate::model_card::read_card;
use crate::small_files::{read_json, to_json};
use crate::weights::{TensorFile, WeightSource};
use crate::{
    BlockFormat, ModelCard, ModelConfig, ModelError, Transformer, is_hugging_face_folder, weights,
    write_atomically,
};

/// A model folder and its small files. The weights stay on disk until [`load`](Self::load).
///
/// A file of another format, opened by the crate that reads it, can take the place of the folder
/// ([`from_file`](Self::from_file)).
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
    /// The path of the folder or file.
    pub path: PathBuf,
    /// The architecture.
    pub config: ModelConfig,
    /// The metadata.
    pub card: ModelCard,
    /// What a file of another format has in place of the files of a folder.
    file: Option<Arc<FileModel>>,
    /// What is added to the weights of another model.
    update: Option<Arc<UpdatedModel>>,
    /// Whether the weights of a folder are used from the mapped file.
    is_mapped: bool,
}

/// What is added to the weights of a model, such as an adapter.
pub(crate) trait WeightUpdate: Debug + Send + Sync {
    /// Adds the update to `model`.
    fn apply(&self, model: Transformer) -> Result<Transformer, ModelError>;

    /// The sums of the weights in `base`, of a model of `config`, and the update.
    fn merged<'a>(
        &'a self,
        config: &ModelConfig,
        base: Box<dyn WeightSource + 'a>,
    ) -> Box<dyn WeightSource + 'a>;
}

/// A model and what is added to its weights.
#[derive(Debug)]
struct UpdatedModel {
    base: ModelDir,
    update: Box<dyn WeightUpdate>,
}

/// Tokenizer and weights of a model that is one file.
#[derive(Debug)]
struct FileModel {
    tokenizer_json: String,
    weights: Box<dyn WeightSource>,
}

impl ModelDir {
    /// Reads the small files of the model folder at `path`.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if it is not a valid model folder.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if path.is_file() {
            return Err(ModelError::Format {
                path: path.to_path_buf(),
                problem: "is a file, but a model folder is required; hint: convert a GGUF file with `nextword import \
                          FILE --out FOLDER`"
                    .to_string(),
            });
        }
        let file = path.join("config.json");
        let config = read_json::<ModelConfig>(&file).map_err(|error| {
            if !is_hugging_face_folder(path) {
                return error;
            }
            let problem = format!(
                "is a Hugging Face folder, not a model folder; hint: convert it with `nextword import {} --out MODEL`",
                path.display()
            );
            ModelError::Format {
                path: path.to_path_buf(),
                problem,
            }
        })?;
        config.validate().map_err(|e| ModelError::Format {
            path: file,
            problem: e.to_string(),
        })?;
        let card = read_card(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            config,
            card,
            file: None,
            update: None,
            is_mapped: false,
        })
    }

    /// This model with weights that [`load`](Self::load) maps into memory instead of copying them, or without: see
    /// [`weights::load_mapped`]. A file of another format is always copied.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::ModelDir;
    ///
    /// let model = ModelDir::open("../../docs/models/letters".as_ref())?;
    /// let copied = model.load(&Device::flex())?;
    /// let mapped = model.with_mapping(true).load(&Device::flex())?;
    /// let values = |model: &nextword_model::Transformer| model.token_embedding.weight.to_data();
    /// assert_eq!(values(&mapped), values(&copied));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    #[must_use]
    pub fn with_mapping(mut self, is_mapped: bool) -> Self {
        self.is_mapped = is_mapped;
        self
    }

    /// This model with `update`, which is in the folder `path` with `card`.
    pub(crate) fn with_update(
        self,
        path: &Path,
        card: ModelCard,
        update: Box<dyn WeightUpdate>,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            config: self.config.clone(),
            card,
            file: self.file.clone(),
            is_mapped: self.is_mapped,
            update: Some(Arc::new(UpdatedModel { base: self, update })),
        }
    }

    /// The base model, if this is an adapter with its base.
    pub fn base(&self) -> Option<&Self> {
        Some(&self.update.as_ref()?.base)
    }

    /// A model that is the file `path` of another format, with `tokenizer_json` in Hugging Face's format.
    ///
    /// ```
    /// use nextword_model::{ModelCard, ModelDir, ModelError, presets, weights::WeightSource};
    ///
    /// /// A model whose weights are all zero.
    /// #[derive(Debug)]
    /// struct Zeros;
    ///
    /// impl WeightSource for Zeros {
    ///     fn shape(&self, name: &str) -> Option<&[usize]> {
    ///         (name == "head.weight").then_some(&[2, 5])
    ///     }
    ///
    ///     fn values(&self, _name: &str) -> Result<Vec<f32>, ModelError> {
    ///         Ok(vec![0.0; 10])
    ///     }
    /// }
    ///
    /// let config = presets::statquest(5);
    /// let model = ModelDir::from_file(
    ///     "zeros.bin".as_ref(), config, ModelCard::default(), "{}".to_string(), Box::new(Zeros),
    /// );
    /// assert_eq!(model.open_weights()?.values("head.weight")?, [0.0; 10]);
    /// assert_eq!(model.tokenizer_json(), Some("{}"));
    /// # Ok::<(), ModelError>(())
    /// ```
    pub fn from_file(
        path: &Path,
        config: ModelConfig,
        card: ModelCard,
        tokenizer_json: String,
        weights: Box<dyn WeightSource>,
    ) -> Self {
        let file = FileModel {
            tokenizer_json,
            weights,
        };
        Self {
            path: path.to_path_buf(),
            config,
            card,
            file: Some(Arc::new(file)),
            update: None,
            is_mapped: false,
        }
    }

    /// The tokenizer of a model that is one file; `None` for a folder, which has it in
    /// [`tokenizer_path`](Self::tokenizer_path).
    pub fn tokenizer_json(&self) -> Option<&str> {
        let file = self.file.as_ref()?;
        Some(&file.tokenizer_json)
    }

    /// Opens the weights, to read single tensors. Those of an adapter are the sums with its base; a quantized matrix is
    /// then read as floats.
    ///
    /// # Errors
    /// [`ModelError::Io`] or [`ModelError::Format`] if the file cannot be read or is invalid.
    pub fn open_weights(&self) -> Result<Box<dyn WeightSource + '_>, ModelError> {
        if let Some(updated) = &self.update {
            let base = updated.base.open_weights()?;
            return Ok(updated.update.merged(&self.config, base));
        }
        Ok(match &self.file {
            Some(file) => Box::new(&*file.weights),
            None => Box::new(TensorFile::open(&self.weights_path())?),
        })
    }

    /// Returns the bit width of the blocks' weights and that of the token embedding, where they stay quantized.
    ///
    /// # Errors
    /// As [`weights::bits`].
    pub fn bits(&self) -> Result<(Option<u8>, Option<u8>), ModelError> {
        if let Some(file) = &self.file {
            let bits = |name| file.weights.matrix_format(name).map(BlockFormat::bits);
            let embedding = bits("token_embedding.weight");
            return Ok((
                bits("blocks.0.attention.query.weight").or(embedding),
                embedding,
            ));
        }
        let path = self.weights_path();
        Ok((weights::bits(&path)?, weights::embedding_bits(&path)?))
    }

    /// Returns the formats of quantized matrices, with the number of their values.
    ///
    /// # Errors
    /// As [`weights::bits`].
    ///
    /// ```
    /// use nextword_model::ModelDir;
    ///
    /// let model = ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// assert!(model.block_formats()?.is_empty()); // it has floats
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn block_formats(&self) -> Result<BTreeMap<BlockFormat, usize>, ModelError> {
        let source = self.open_weights()?;
        let mut formats = BTreeMap::new();
        for (name, shape) in weights::layout(&self.config) {
            if let Some(format) = source.matrix_format(&name) {
                *formats.entry(format).or_default() += shape.iter().product::<usize>();
            }
        }
        Ok(formats)
    }

    /// The path of the weights file: for a model that is one file, that file, and for an adapter that of its base.
    pub fn weights_path(&self) -> PathBuf {
        let path = self.base_path();
        match &self.file {
            Some(_) => path.to_path_buf(),
            None => path.join("model.safetensors"),
        }
    }

    /// The path of the folder or file with weights and tokenizer.
    fn base_path(&self) -> &Path {
        self.base().map_or(&self.path, |base| &base.path)
    }

    /// The path of the tokenizer file, in Hugging Face's format. For a model that is one file, that file, to name it in
    /// messages: see [`tokenizer_json`](Self::tokenizer_json).
    pub fn tokenizer_path(&self) -> PathBuf {
        let path = self.base_path();
        match &self.file {
            Some(_) => path.to_path_buf(),
            None => path.join("tokenizer.json"),
        }
    }

    /// The path of the Jinja template that turns chat messages into a prompt. The file exists only
    /// for chat models that are folders; the card has the templates of all.
    pub fn chat_template_path(&self) -> PathBuf {
        let own = self.path.join(TEMPLATE_FILE);
        match self.base() {
            Some(base) if !own.exists() => base.chat_template_path(),
            _ => own,
        }
    }

    /// Adds the adapter, if this is one with its base, to `base`: its base model, which is loaded already.
    ///
    /// # Errors
    /// As [`Transformer::with_adapter`].
    pub fn adapt(&self, base: Transformer) -> Result<Transformer, ModelError> {
        match &self.update {
            Some(updated) => updated.update.apply(base),
            None => Ok(base),
        }
    }

    /// Loads the model on `device`.
    ///
    /// # Errors
    /// See [`weights::load`].
    pub fn load(&self, device: &Device) -> Result<Transformer, ModelError> {
        if let Some(updated) = &self.update {
            let base = Self {
                config: self.config.clone(),
                is_mapped: self.is_mapped,
                ..updated.base.clone()
            };
            return self.adapt(base.load(device)?);
        }
        match &self.file {
            Some(file) => weights::load_from(&self.config, &self.path, &*file.weights, device),
            None if self.is_mapped => {
                weights::load_mapped(&self.config, &self.weights_path(), device)
            }
            None => weights::load(&self.config, &self.weights_path(), device),
        }
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
    /// [`ModelError::Io`] if a file cannot be written, and [`ModelError::Format`] if the chat templates of the card
    /// are incomplete or have names that are not those of files.
    pub fn write_small_files(
        path: &Path,
        config: &ModelConfig,
        tokenizer_json: &str,
        card: &ModelCard,
    ) -> Result<(), ModelError> {
        card.check_templates()?;
        write_atomically(&path.join("config.json"), &to_json(config))?;
        write_atomically(&path.join("tokenizer.json"), tokenizer_json.as_bytes())?;
        write_atomically(&path.join("card.json"), &to_json(card))?;
        write_chat_templates(path, &card.chat_templates)
    }
}
