//! Models: loaded by the caller, then served by an engine.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use burn::tensor::Device;
use nextword_chat::{ChatError, ChatTemplate, PromptEncoder};
use nextword_data::Tokenizer;
use nextword_explain::history::TrainingHistory;
use nextword_generate::{BatchOptions, TextGenerator};
use nextword_model::{KvCache, ModelConfig, ModelDir, RowAdapter};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::api_error::ApiError;
use crate::engine::{Engine, EngineThread, RequestedModel, Sequence, Updates};
use crate::metrics::{ModelMetrics, RequestMetrics};
use crate::{Config, ServerError};

/// A loaded model and the name that clients use for it.
#[derive(Debug)]
pub struct LoadedModel {
    name: String,
    /// Another name that requests may use.
    alias: Option<String>,
    generator: TextGenerator,
    template: Result<Option<ChatTemplate>, ChatError>,
    training_history: Option<TrainingHistory>,
    fingerprint: String,
    created: u64,
    /// The name of the model that this one was made from, if that is served.
    parent: Option<String>,
}

/// Opens the chat template of a model, if it has one, with the texts of the BOS and EOS tokens.
///
/// # Errors
/// As [`ChatTemplate::open`].
///
/// ```
/// use nextword_model::ModelDir;
/// use nextword_server::open_chat_template;
///
/// let folder = ModelDir::open("../../docs/models/statquest".as_ref())?;
/// assert!(open_chat_template(&folder, "", "<EOS>")?.is_none()); // It has a prompt template instead.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_chat_template(
    model_dir: &ModelDir,
    bos: &str,
    eos: &str,
) -> Result<Option<ChatTemplate>, ChatError> {
    match model_dir.tokenizer_json() {
        // A model that is one file.
        Some(_) => ChatTemplate::from_named(&model_dir.card.chat_templates, bos, eos),
        None => ChatTemplate::open(&model_dir.chat_template_path(), bos, eos),
    }
}

impl LoadedModel {
    /// Loads the model of `model_dir` onto `device`, to be served as `name`.
    ///
    /// # Errors
    /// If the model's files are missing or invalid. An invalid chat template only disables chat: see
    /// [`warning`](Self::warning).
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::ModelDir;
    /// use nextword_server::LoadedModel;
    ///
    /// let folder = ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// let model = LoadedModel::open("statquest".to_string(), &folder, &Device::flex())?;
    /// assert_eq!(model.warning(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(name: String, model_dir: &ModelDir, device: &Device) -> Result<Self, ServerError> {
        let generator = TextGenerator::open(model_dir, device)?;
        let weights = modified(&model_dir.weights_path());
        // An adapter is newer than its base.
        let card = model_dir
            .base()
            .map(|_| modified(&model_dir.path.join("card.json")));
        let created = weights.max(card.unwrap_or_default());
        Ok(Self::with_generator(name, model_dir, generator, created))
    }

    /// The model of `model_dir`, loaded as `generator`. `created`: when it was written.
    pub(crate) fn with_generator(
        name: String,
        model_dir: &ModelDir,
        generator: TextGenerator,
        created: u64,
    ) -> Self {
        let (bos, eos) = (generator.bos_text(), generator.eos_text());
        let template = open_chat_template(model_dir, &bos, &eos);
        let tokens = generator.further_token_texts();
        let template = template.map(|template| Some(template?.with_tokens(tokens)));
        Self {
            template,
            ..Self::with_time(name, generator, created)
        }
    }

    /// A model in memory, to be served as `name`, without a chat template.
    pub fn new(name: impl Into<String>, generator: TextGenerator) -> Self {
        Self::with_time(name.into(), generator, seconds(SystemTime::now()))
    }

    /// `created`: seconds since the Unix epoch, when the weights were written.
    fn with_time(name: String, generator: TextGenerator, created: u64) -> Self {
        Self {
            name,
            alias: None,
            fingerprint: fingerprint(&generator, created),
            created,
            generator,
            template: Ok(None),
            training_history: None,
            parent: None,
        }
    }

    /// The model with its tokenizer. Clones share the weights.
    pub fn generator(&self) -> &TextGenerator {
        &self.generator
    }

    /// Names the served model that this one was made from, for clients.
    #[must_use]
    pub fn with_parent(self, name: impl Into<String>) -> Self {
        let parent = Some(name.into());
        Self { parent, ..self }
    }

    /// Changes how the model generates, for example with
    /// [`with_prompt_lookup`](TextGenerator::with_prompt_lookup).
    ///
    /// # Errors
    /// The error of `change`.
    pub fn map_generator<E>(
        self,
        change: impl FnOnce(TextGenerator) -> Result<TextGenerator, E>,
    ) -> Result<Self, E> {
        Ok(Self {
            generator: change(self.generator)?,
            ..self
        })
    }

    /// Adds another name that requests may use, unless another model has it as its name.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::ModelDir;
    /// use nextword_server::LoadedModel;
    ///
    /// let folder = ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// let model = LoadedModel::open("course".to_string(), &folder, &Device::flex())?;
    /// let model = model.with_alias("statquest");
    /// assert_eq!((model.name(), model.alias()), ("course", Some("statquest")));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_alias(self, alias: impl Into<String>) -> Self {
        let alias = Some(alias.into()).filter(|alias| !alias.is_empty() && *alias != self.name);
        Self { alias, ..self }
    }

    /// The name that requests use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The other name that requests may use.
    pub fn alias(&self) -> Option<&str> {
        self.alias.as_deref()
    }

    /// Sets the chat template of a model in memory.
    #[must_use]
    pub fn with_chat_template(self, template: ChatTemplate) -> Self {
        Self {
            template: Ok(Some(template)),
            ..self
        }
    }

    /// Adds the training history of the model's run, which the explain page shows.
    #[must_use]
    pub fn with_training_history(self, history: TrainingHistory) -> Self {
        Self {
            training_history: Some(history),
            ..self
        }
    }

    /// A non-fatal load problem, if any.
    pub fn warning(&self) -> Option<String> {
        let name = &self.name;
        let template = match &self.template {
            Ok(template) => template.as_ref()?,
            Err(error) => return Some(format!("chat is disabled for `{name}`: {error}")),
        };
        let methods: Vec<String> = template
            .unknown_methods()
            .iter()
            .map(|method| format!("`{method}`"))
            .collect();
        (!methods.is_empty()).then(|| {
            format!(
                "the chat template of `{name}` calls {}, which is not available; conversations that need it are rejected",
                methods.join(", ")
            )
        })
    }
}

/// A model and the engine that runs it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) fingerprint: String,
    /// The model, with its adapter if it is one.
    pub(crate) generator: TextGenerator,
    /// Formats and encodes conversations, if the model has a chat template.
    pub(crate) prompts: Result<Option<PromptEncoder>, ChatError>,
    pub(crate) training_history: Option<TrainingHistory>,
    /// Adapters have that of their base.
    pub(crate) engine: Arc<Engine>,
    pub(crate) metrics: Arc<RequestMetrics>,
    /// What requests add to the rows of the engine's model.
    pub(crate) adapter: Option<RowAdapter>,
    /// The name of the base, for adapters, those with weights of their own included.
    pub(crate) parent: Option<String>,
    created: u64,
}

impl Model {
    /// Starts the engine of `loaded` within the limits of `config`.
    pub(crate) fn start(
        loaded: LoadedModel,
        config: &Config,
    ) -> Result<(Self, EngineThread), ServerError> {
        let model_config = loaded.generator.model().config();
        let cache_precision = loaded.generator.cache_precision();
        // Cross-attention keeps the keys and values of a source in each slot: half of the memory is for sources.
        let caches = 1 + u64::from(model_config.has_encoder());
        let bytes_per_token =
            caches * KvCache::bytes_per_token(model_config, cache_precision) as u64;
        let cache_tokens = config.cache_bytes / bytes_per_token.max(1);
        let context_length = model_config.context_length as u64;
        if cache_tokens < context_length {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(ServerError::Budget {
                needed: mib(bytes_per_token.saturating_mul(context_length)),
                name: loaded.name,
                budget: mib(config.cache_bytes),
            });
        }
        // More than a whole context for each sequence cannot be used.
        let mut slots = config.slots.max(1) as u64;
        let cache_tokens = cache_tokens.min(context_length.saturating_mul(slots));
        if model_config.has_encoder() {
            slots = slots.min(cache_tokens / context_length.max(1)).max(1);
        }
        let options = BatchOptions {
            slots: usize::try_from(slots).unwrap_or(config.slots),
            cache_tokens: usize::try_from(cache_tokens).ok(),
            cache_precision,
            start_id: loaded.generator.target_start_id(),
            ..BatchOptions::default()
        };
        let generator = loaded.generator.clone();
        let (engine, thread) = Engine::start(&loaded.name, generator, options, config.queue)?;
        Ok((Self::new(loaded, Arc::new(engine), None), thread))
    }

    /// The model `loaded`, run by `engine` with `adapter`.
    pub(crate) fn new(
        loaded: LoadedModel,
        engine: Arc<Engine>,
        adapter: Option<RowAdapter>,
    ) -> Self {
        let (tokenizer, start) = (loaded.generator.tokenizer(), loaded.generator.start_id());
        let encoder = |template| PromptEncoder::new(template, tokenizer.clone(), start);
        Self {
            prompts: loaded.template.map(|template| template.map(encoder)),
            name: loaded.name,
            alias: loaded.alias,
            fingerprint: loaded.fingerprint,
            generator: loaded.generator,
            training_history: loaded.training_history,
            engine,
            metrics: Arc::default(),
            adapter,
            parent: loaded.parent,
            created: loaded.created,
        }
    }

    /// Continues the metrics of `earlier`, a model that this one replaces.
    pub(crate) fn with_metrics_of(self, earlier: &Self) -> Self {
        let metrics = earlier.metrics.clone();
        Self { metrics, ..self }
    }

    /// Appends a request to the queue of the engine.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub(crate) fn submit(&self, sequences: Vec<Sequence>) -> Result<Updates, ApiError> {
        let model = RequestedModel {
            tokenizer: self.tokenizer().clone(),
            metrics: self.metrics.clone(),
        };
        self.engine.submit(sequences, model)
    }

    /// The metrics of the model, with those of its engine unless that is another model's.
    pub(crate) fn metrics(&self) -> ModelMetrics<'_> {
        let has_engine = self.adapter.is_none();
        ModelMetrics {
            name: &self.name,
            requests: &self.metrics,
            engine: has_engine.then(|| self.engine.snapshot()),
        }
    }

    pub(crate) fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        self.generator.tokenizer()
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        self.generator.model().config()
    }

    /// The entry in `/v1/models`.
    pub(crate) fn to_json(&self) -> Value {
        let card = self.generator.card();
        let has_template = matches!(self.prompts, Ok(Some(_)));
        let mut entry = json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "nextword",
            "meta": {
                "n_vocab": self.config().vocab_size, "n_ctx_train": self.config().context_length,
                "n_params": card.parameters, "step": card.step,
                "chat": self.config().architecture.generates()
                    && (has_template || card.prompt_template.is_some()),
                "architecture": self.config().architecture.name(),
            },
        });
        if let Some(parent) = &self.parent {
            entry["parent"] = json!(parent);
        }
        entry
    }
}

/// `system_fingerprint`: changes whenever the output of a seeded request may change.
fn fingerprint(generator: &TextGenerator, created: u64) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(generator.tokenizer().hash());
    let (config, card) = (generator.model().config(), generator.card());
    hasher.update(format!("{config:?}{card:?}"));
    hasher.update(created.to_le_bytes());
    let adapter = generator.model().row_adapter();
    hasher.update(adapter.map(|adapter| adapter.id()).unwrap_or_default());
    format!("fp_{}", hex::encode(&hasher.finalize()[..5]))
}

/// When the file was written, in seconds since the Unix epoch.
pub(crate) fn modified(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|meta| meta.modified());
    seconds(time.unwrap_or(UNIX_EPOCH))
}

/// Seconds since the Unix epoch.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
