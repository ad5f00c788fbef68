//! A record behind the server, and what it is asked for.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use burn::tensor::Device;
use nextword_data::Tokenizer;
use nextword_explain::learning::Learning;
use nextword_generate::{BatchOptions, TextGenerator};
use nextword_model::{ModelConfig, Record};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::chat_template::ChatTemplate;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::{Config, ServerError};

/// A loaded record under its name.
#[derive(Debug)]
pub struct Served {
    name: String,
    generator: TextGenerator,
    template: Result<Option<ChatTemplate>, ServerError>,
    learning: Option<Learning>,
    fingerprint: String,
    created: u64,
}

impl Served {
    /// Loads `record` onto `device`; clients ask for it by `name`.
    ///
    /// # Errors
    /// What is wrong with the record's files. A chat template that is none refuses chats alone: see
    /// [`warning`](Self::warning).
    pub fn open(name: String, record: &Record, device: &Device) -> Result<Self, ServerError> {
        let generator = TextGenerator::open(record, device)?;
        let template = ChatTemplate::open(record, &**generator.tokenizer());
        Ok(Self {
            name,
            fingerprint: fingerprint(record, &**generator.tokenizer()),
            created: modified(&record.weights_path()),
            generator,
            template,
            learning: None,
        })
    }

    /// With what its run kept of sentences over training, for the page that explains.
    #[must_use]
    pub fn with_learning(self, learning: Learning) -> Self {
        Self {
            learning: Some(learning),
            ..self
        }
    }

    /// What does not work.
    pub fn warning(&self) -> Option<String> {
        let error = self.template.as_ref().err()?;
        Some(format!("`{}` answers no chats: {error}", self.name))
    }
}

/// A model with its running engine.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) fingerprint: String,
    pub(crate) generator: TextGenerator,
    pub(crate) template: Result<Option<ChatTemplate>, ServerError>,
    pub(crate) learning: Option<Learning>,
    pub(crate) engine: Engine,
    pub(crate) metrics: Arc<Metrics>,
    created: u64,
}

impl Model {
    /// Starts the engine of `served` within the limits of `config`.
    pub(crate) fn start(served: Served, config: &Config) -> Result<Self, ServerError> {
        let slot = slot_bytes(served.generator.model().config());
        let budget = config.cache_bytes;
        let fitting = usize::try_from(budget / slot.max(1)).unwrap_or(usize::MAX);
        if fitting == 0 {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(ServerError::Budget {
                name: served.name,
                needed: mib(slot),
                budget: mib(budget),
            });
        }
        let options = BatchOptions {
            slots: config.slots.clamp(1, fitting),
            ..BatchOptions::default()
        };
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start(
            served.generator.clone(),
            options,
            config.queue,
            metrics.clone(),
        )?;
        Ok(Self {
            name: served.name,
            fingerprint: served.fingerprint,
            generator: served.generator,
            template: served.template,
            learning: served.learning,
            engine,
            metrics,
            created: served.created,
        })
    }

    pub(crate) fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        self.generator.tokenizer()
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        self.generator.model().config()
    }

    /// As `/v1/models` lists it.
    pub(crate) fn json(&self) -> Value {
        let card = self.generator.card();
        let has_template = matches!(self.template, Ok(Some(_)));
        json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "nextword",
            "meta": {
                "n_vocab": self.config().vocab_size, "n_ctx_train": self.config().context_length,
                "n_params": card.parameters, "step": card.step,
                "chat": has_template || card.prompt_template.is_some(),
            },
        })
    }
}

/// Bytes of keys and values of one sequence as long as the context, in f32.
fn slot_bytes(config: &ModelConfig) -> u64 {
    let numbers = 2 * config.n_layers * config.kv_heads() * config.head_dim();
    (numbers * config.context_length * size_of::<f32>()) as u64
}

/// Changes with whatever changes the text of a seeded request.
fn fingerprint(record: &Record, tokenizer: &dyn Tokenizer) -> String {
    let mut hasher = Sha256::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    hasher.update(tokenizer.hash());
    hasher.update(format!("{:?}{:?}", record.config, record.card));
    hasher.update(modified(&record.weights_path()).to_le_bytes());
    let mut text = "fp_".to_owned();
    for byte in &hasher.finalize()[..5] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn modified(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|meta| meta.modified());
    seconds(time.unwrap_or(UNIX_EPOCH))
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
