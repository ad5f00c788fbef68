//! Builds everything that a run needs from its configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;
use nextword_data::{Dataset, EvalWindows, Loader, Samples, Tokenizer};
use nextword_model::{DeviceName, ModelDir, ModelTokens, Transformer, weights};
use nextword_parallel::Group;

use self::batches::loader_config;
use self::conversation_data::{read_conversations, without_conversations};
use self::model_parts::{ModelParts, model_tokens};
use self::pair_data::samples_of;
use self::source_model::{SourceModel, apply_base_model};
use crate::conversation_defaults::resolve_epochs;
use crate::conversations::{Conversations, dataset_without_tokens};
use crate::other_text::{self, OtherTextWindows};
use crate::pairs::{self, Pairs};
use crate::start_from::LoraBase;
use crate::task::Task;
use crate::tokenizer_choice::{build_dataset, resolve_vocab_size, use_declared_eos};
use crate::{RunConfig, TrainError};

mod batches;
mod conversation_data;
mod description;
mod memory;
mod model_parts;
mod pair_data;
mod source_model;

pub use self::conversation_data::prepare_conversations;
pub use self::pair_data::prepare_pairs;
pub use self::source_model::resolve_model_dir;

/// Everything that a run needs, built from its configuration.
#[derive(Debug)]
pub struct RunSetup {
    /// The configuration, completed from the data and from the model in `start_from`.
    pub config: RunConfig,
    /// Both splits and the tokenizer.
    pub dataset: Dataset,
    /// The device of the model.
    pub device: Device,
    /// Training batches.
    pub loader: Loader,
    /// Validation windows; `None` without a validation split.
    pub validation: Option<EvalWindows>,
    /// The special tokens of the trained model: those of the model in `start_from`, otherwise the
    /// tokenizer's.
    pub special: ModelTokens,
    /// The chat templates of the model in `start_from` (see [`ModelCard::chat_templates`](nextword_model::ModelCard::chat_templates)).
    pub chat_templates: BTreeMap<String, String>,
    /// What the run adapts, if it has `[lora]`.
    pub lora: Option<LoraBase>,
    /// The conversations that the run trains on, in place of the tokens of `dataset`.
    pub conversations: Option<Conversations>,
    /// The pairs that the run trains on, in place of the tokens of `dataset`.
    pub pairs: Option<Pairs>,
    /// The texts of `validation.also`.
    pub(crate) other_texts: Vec<OtherTextWindows>,
    /// The ranks that share the run; by default this one alone.
    pub group: Group,
    /// What the model card says about the data, if a checkpoint has it: a resumed run reads the same data by other
    /// paths.
    pub(crate) trained_on: Option<String>,
}

/// Reads the data, opens the device and checks that everything is compatible. Does not create
/// weights yet. For data in memory, see [`RunSetup::from_dataset`].
///
/// # Errors
/// [`TrainError`] with the first problem found.
pub fn prepare_run(mut config: RunConfig) -> Result<RunSetup, TrainError> {
    if config.start_from.is_none() {
        use_declared_eos(&mut config.data.tokenizer);
    }
    prepare_stored_run(config)
}

/// Like [`prepare_run`], with the configuration that a run stored: its tokenizer is complete, so that the
/// resumed run has the same tokens.
///
/// # Errors
/// [`TrainError`] with the first problem found.
pub fn prepare_stored_run(config: RunConfig) -> Result<RunSetup, TrainError> {
    let mut base = BaseConfig::new(config, None)?;
    let given = base.source.as_ref().and_then(SourceModel::given_tokenizer);
    let dataset = if base.config.data.has_conversations() {
        base.config.data.validate()?;
        dataset_without_tokens(&base.config, given)?
    } else if base.config.data.has_pairs() {
        base.config.data.validate()?;
        pairs::dataset_without_tokens(&base.config, given)?
    } else if let Some(tokenizer) = given {
        Dataset::build_with_tokenizer(&base.config.data, tokenizer)?
    } else {
        build_dataset(&mut base.config)?
    };
    base.with_dataset(dataset)
}

/// A checked configuration, before its data is read.
struct BaseConfig {
    config: RunConfig,
    task: Task,
    device: Device,
    /// What the run takes over from the model in `start_from`.
    source: Option<SourceModel>,
}

impl BaseConfig {
    /// Opens the device of `config`, unless there is an open one.
    fn new(mut config: RunConfig, open_device: Option<&Device>) -> Result<Self, TrainError> {
        let source = apply_base_model(&mut config)?;
        let parameters = config.model.parameter_counts().total();
        config.apply_lora_defaults(Some(parameters));
        let task = Task::of(&config)?;
        task.complete(&mut config);
        config.apply_preference_defaults(parameters);
        config.validate()?;
        config.validate_sequence_length()?;
        let (device, name) = if let Some(device) = open_device {
            (device.clone(), "this device".to_string())
        } else {
            let name: DeviceName = config.device.parse()?;
            (name.open()?, name.to_string())
        };
        if !config.train.precision.is_supported(&device) {
            return Err(TrainError::config(
                "train.precision",
                format!("{name} does not support bf16"),
                "use train.precision = \"f32\", or device = \"flex\"",
            ));
        }
        Ok(Self {
            config,
            task,
            device,
            source,
        })
    }

    fn with_dataset(self, dataset: Dataset) -> Result<RunSetup, TrainError> {
        let Self {
            mut config,
            task,
            device,
            source,
        } = self;
        let mut model = model_tokens(&config, source, &dataset)?;
        resolve_vocab_size(&mut config, dataset.tokenizer.as_ref())?;
        check_parameters(&config)?;
        let conversations = read_conversations(&mut config, &dataset, &mut model)?;
        let conversations = conversations.map(Conversations::without_examples);
        let pairs = Pairs::of_run(&mut config, task, &dataset, &model.special)?;
        let masked = task.masked_tokens(&config, &*dataset.tokenizer)?;
        let batches = loader_config(&config, &*dataset.tokenizer);
        let padding_id = batches.padding_id;
        let samples = samples_of(conversations.as_ref(), pairs.as_ref());
        let loader = match (samples, &masked) {
            (Some((train, _)), _) => {
                let batches = conversations
                    .as_ref()
                    .map_or(batches, Conversations::batches);
                match config.preferences {
                    Some(settings) if settings.loss.is_pairwise() => {
                        Loader::from_pairs(train.clone(), batches)?
                    }
                    // Mismatched completions are not trained.
                    Some(_) => Loader::from_pairs(train.clone(), batches)?.with_first_trained(),
                    None => Loader::from_samples(train.clone(), batches)?,
                }
            }
            (None, None) => Loader::new(dataset.train.clone(), batches)?,
            (None, Some(masked)) => {
                Loader::new(dataset.train.clone(), batches)?.with_masked_tokens(masked.clone())
            }
        };
        resolve_epochs(&mut config, &loader)?;
        let held_out = samples.map(|(_, validation)| validation);
        let mut validation = validation_windows(&config, &dataset, held_out, padding_id)?;
        if let Some(masked) = masked {
            validation = validation.map(|windows| windows.with_masked_tokens(masked));
        }
        let ModelParts {
            special,
            chat_templates,
            lora,
        } = model;
        let other_texts = other_text::read(&config, dataset.tokenizer.as_ref(), &special)?;
        Ok(RunSetup {
            config,
            dataset,
            device,
            loader,
            validation,
            special,
            chat_templates,
            lora,
            conversations,
            pairs,
            other_texts,
            group: Group::alone(),
            trained_on: None,
        })
    }
}

/// The windows of the validation split, if there is one.
fn validation_windows(
    config: &RunConfig,
    dataset: &Dataset,
    samples: Option<&Samples>,
    padding_id: u32,
) -> Result<Option<EvalWindows>, TrainError> {
    let (packing, length) = (config.data.packing, config.sequence_length());
    if config.preferences.is_some() {
        return Ok(None); // Held-out pairs are not windows.
    }
    let windows = match samples {
        Some(samples) if samples.is_empty() => return Ok(None),
        Some(samples) => EvalWindows::from_samples(samples.clone(), length, padding_id)?,
        None if dataset.validation.is_empty() => return Ok(None),
        None => EvalWindows::new(dataset.validation.clone(), length, packing, padding_id)?,
    };
    Ok(Some(match config.validation.windows {
        0 => windows,
        limit => windows.limit(limit),
    }))
}

impl RunSetup {
    /// Prepares a run on `dataset`, instead of the one that `config.data` describes: only `order` and
    /// `packing` of that table are used.
    ///
    /// # Errors
    /// [`TrainError`] with the first problem found.
    ///
    /// ```
    /// use nextword_data::{Dataset, TokenizerConfig};
    /// use nextword_train::{RunConfig, RunSetup};
    ///
    /// # fn main() -> Result<(), nextword_train::TrainError> {
    /// let dataset = Dataset::from_text(&"to be or not to be ".repeat(50), &TokenizerConfig::chars())?;
    /// let setup = RunSetup::from_dataset(RunConfig::default(), dataset)?;
    /// assert_eq!(setup.config.model.vocab_size, 9); // " benort", <EOS> and <unk>
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_dataset(config: RunConfig, dataset: Dataset) -> Result<Self, TrainError> {
        config.validate_peak()?;
        BaseConfig::new(without_conversations(config), None)?.with_dataset(dataset)
    }

    /// Prepares a run on `dataset` and on an open device, instead of the one that `config.device` names.
    ///
    /// # Errors
    /// [`TrainError`] with the first problem found.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_data::{Dataset, TokenizerConfig};
    /// use nextword_train::{RunConfig, RunSetup};
    ///
    /// # fn main() -> Result<(), nextword_train::TrainError> {
    /// let dataset = Dataset::from_text(&"to be or not to be ".repeat(50), &TokenizerConfig::chars())?;
    /// let config = RunConfig { device: "cuda:7".to_string(), ..RunConfig::default() };
    /// let setup = RunSetup::from_dataset_on(config, dataset, &Device::flex())?; // Opens no GPU.
    /// assert_eq!(setup.device, Device::flex());
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_dataset_on(
        config: RunConfig,
        dataset: Dataset,
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.validate_peak()?;
        BaseConfig::new(without_conversations(config), Some(device))?.with_dataset(dataset)
    }

    /// The model with its initial weights: random, or those of the model in `start_from`; with `[lora]` that model with
    /// an adapter, a new one or the one in `start_from`.
    ///
    /// # Errors
    /// [`TrainError::Model`] if the weights of that model do not match.
    pub fn initial_model(&self) -> Result<Transformer, TrainError> {
        let config = &self.config;
        config.check_lora_base()?;
        if let Some(base) = &self.lora {
            return base.initial_model(config, &self.device);
        }
        match &config.start_from {
            Some(folder) => {
                let path = ModelDir::open(folder)?.weights_path();
                Ok(weights::load(&config.model, &path, &self.device)?)
            }
            None => Ok(config.model.init(&self.device, config.seed)?),
        }
    }

    /// The model that the run adapts, if it has `[lora]`.
    pub(crate) fn base_model(&self) -> Option<&ModelDir> {
        self.lora.as_ref().map(|base| &base.model)
    }

    /// The samples for training and for validation of a run on conversations or pairs.
    pub(crate) fn samples(&self) -> Option<(&Samples, &Samples)> {
        samples_of(self.conversations.as_ref(), self.pairs.as_ref())
    }

    /// The name of the run's device; for `auto`, of the one that it took on this machine.
    pub fn device_name(&self) -> String {
        let name = &self.config.device;
        let taken = name.parse::<DeviceName>().and_then(|name| name.resolve());
        taken.map_or_else(|_| name.clone(), |taken| taken.to_string())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Arc<dyn Tokenizer> {
        Arc::clone(&self.dataset.tokenizer)
    }
}

/// Checks that the model has the number of parameters in `expect_parameters`.
fn check_parameters(config: &RunConfig) -> Result<(), TrainError> {
    let found = config.model.parameter_counts().total();
    match config.expect_parameters {
        Some(expected) if expected != found => Err(TrainError::config(
            "expect_parameters",
            format!("the model has {found} parameters, not {expected}"),
            "correct expect_parameters or [model], or set data.tokenizer.unk = \"\" for a vocabulary without <unk>",
        )),
        _ => Ok(()),
    }
}
