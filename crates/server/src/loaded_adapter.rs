//! Adapters: served with the weights, the engine and the memory of their base.

use nextword_generate::TextGenerator;
use nextword_model::{AdapterDir, ModelDir, RowAdapter};

use crate::loaded_model::modified;
use crate::{LoadedModel, ServerError};

/// A loaded adapter of a served model, the name that clients use for it, and that of the model.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::{AdapterDir, BaseModel, LoraConfig, ModelCard, ModelDir};
/// use nextword_server::{Config, LoadedAdapter, LoadedModel, Server};
///
/// let folder = ModelDir::open("../../docs/models/letters".as_ref())?;
/// let base = LoadedModel::open("letters".to_string(), &folder, &Device::flex())?;
/// # let parent = tempfile::tempdir()?;
/// # let path = parent.path().join("adapter");
/// # let new = base.generator().model().clone().with_new_adapter(&LoraConfig::default(), 7)?;
/// # let card = ModelCard::default();
/// # AdapterDir::save(&path, &new.adapter().unwrap(), &BaseModel::of(&folder)?, &card)?;
/// let adapter = AdapterDir::open(&path)?;
/// let adapter = LoadedAdapter::open("poet".to_string(), &adapter, &base, &folder)?;
/// assert_eq!((adapter.name(), adapter.base()), ("poet", "letters"));
/// let server = Server::new(vec![base], Config::default())?;
/// server.adapters().replace(vec![adapter], &[])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LoadedAdapter {
    pub(crate) model: LoadedModel,
    pub(crate) adapter: RowAdapter,
    base: String,
}

impl LoadedAdapter {
    /// An adapter in memory: `model` is the model that is served as `base`, with the adapter attached.
    ///
    /// # Errors
    /// If it has no adapter that can share the products with the base's weights (see
    /// [`Transformer::row_adapter`](nextword_model::Transformer::row_adapter)).
    pub fn new(model: LoadedModel, base: &str) -> Result<Self, ServerError> {
        let adapter = model.generator().model().row_adapter()?;
        Ok(Self {
            model: model.with_parent(base),
            adapter,
            base: base.to_string(),
        })
    }

    /// Loads the adapter `dir` of `base`, which is the model of `base_dir`, to be served as `name`. Whether it was
    /// trained for this model is not checked: see [`BaseModel`](nextword_model::BaseModel).
    ///
    /// The adapter's card, chat template and special tokens are its own; what they leave out is that of the base.
    ///
    /// # Errors
    /// If the adapter's files are missing, damaged or for a model of another shape, or the adapter cannot share the
    /// products with the base's weights (see [`Transformer::row_adapter`](nextword_model::Transformer::row_adapter)).
    pub fn open(
        name: String,
        dir: &AdapterDir,
        base: &LoadedModel,
        base_dir: &ModelDir,
    ) -> Result<Self, ServerError> {
        Self::with_base(name, dir, (base.name(), base.generator()), base_dir)
    }

    /// Like [`open`](Self::open), with the name and the generator of a model that is already served.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_base(
        name: String,
        dir: &AdapterDir,
        (base_name, base): (&str, &TextGenerator),
        base_dir: &ModelDir,
    ) -> Result<Self, ServerError> {
        let model_dir = dir.clone().with_base(base_dir.clone())?;
        let model = model_dir.adapt(base.model().clone())?;
        let tokenizer = base.tokenizer().clone();
        let generator = TextGenerator::new(model, tokenizer, model_dir.card.clone())?;
        let created = modified(&dir.tensors_path());
        let model = LoadedModel::with_generator(name, &model_dir, generator, created);
        Self::new(model, base_name)
    }

    /// Changes the model, for example with [`LoadedModel::with_alias`].
    #[must_use]
    pub fn map_model(self, change: impl FnOnce(LoadedModel) -> LoadedModel) -> Self {
        let model = change(self.model);
        Self { model, ..self }
    }

    /// The name that requests use.
    pub fn name(&self) -> &str {
        self.model.name()
    }

    /// The name of its base model.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The adapter as a model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }
}
