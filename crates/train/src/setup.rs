//! Builds everything that a run needs from its configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use nextword_data::{
    DataConfig, Dataset, EvalWindows, Loader, LoaderConfig, Tokenizer, TokenizerConfig,
    load_tokenizer_with_roles, parse_tokenizer_with_roles, unknown_note, whole_documents_note,
};
use nextword_kernels::QuantizedMatrix;
use nextword_model::{
    Bits, DeviceName, MemoryEstimate, ModelCard, ModelConfig, ModelDir, ModelTokens, TrainingShape,
    Transformer, weights,
};

use crate::conversation_defaults::resolve_epochs;
use crate::conversations::{ChatModel, Conversations, dataset_without_tokens};
use crate::saved_model::saved_card;
use crate::start_from::{self, LoraBase};
use crate::tokenizer_choice::{
    build_dataset, check_tokenizer, resolve_vocab_size, use_declared_eos,
};
use crate::{Optimizer, RunConfig, TrainError};

/// Memory that a validation batch may always take.
const MIN_VALIDATION_MEMORY: usize = 64 << 20;

/// Bytes of text from which it matters that one thread encodes a document.
const LONG_TEXT: u64 = 1 << 20;

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
    /// The chat templates of the model in `start_from` (see [`ModelCard::chat_templates`]).
    pub chat_templates: BTreeMap<String, String>,
    /// What the run adapts, if it has `[lora]`.
    pub lora: Option<LoraBase>,
    /// The conversations that the run trains on, in place of the tokens of `dataset`.
    pub conversations: Option<Conversations>,
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
    } else if let Some(tokenizer) = given {
        Dataset::build_with_tokenizer(&base.config.data, tokenizer)?
    } else {
        build_dataset(&mut base.config)?
    };
    base.with_dataset(dataset)
}

/// Reads and encodes the conversations of `config` as [`prepare_run`] does, without opening its device. `None`
/// if the configuration has other data.
///
/// # Errors
/// [`TrainError`] with the first problem found.
pub fn prepare_conversations(mut config: RunConfig) -> Result<Option<Conversations>, TrainError> {
    if config.start_from.is_none() {
        use_declared_eos(&mut config.data.tokenizer);
    }
    let source = apply_base_model(&mut config)?;
    config.validate()?;
    config.validate_sequence_length()?;
    config.data.validate()?;
    if !config.data.has_conversations() {
        return Ok(None);
    }
    let given = source.as_ref().and_then(SourceModel::given_tokenizer);
    let dataset = dataset_without_tokens(&config, given)?;
    let mut model = model_tokens(&config, source, &dataset)?;
    read_conversations(&mut config, &dataset, &mut model)
}

/// What a trained model takes over from the one in `start_from`, or gets from its tokenizer.
struct ModelParts {
    special: ModelTokens,
    chat_templates: BTreeMap<String, String>,
    lora: Option<LoraBase>,
}

fn model_tokens(
    config: &RunConfig,
    source: Option<SourceModel>,
    dataset: &Dataset,
) -> Result<ModelParts, TrainError> {
    let roles = dataset.tokenizer.special_tokens();
    if let Some(SourceModel {
        tokenizer,
        card,
        lora,
    }) = source
    {
        check_tokenizer(config, tokenizer.as_ref(), dataset.tokenizer.as_ref())?;
        let mut special = card.special;
        if config.data.prepared.is_none() && roles.eos != tokenizer.special_tokens().eos {
            end_documents_with(&mut special, roles.eos);
        }
        return Ok(ModelParts {
            special,
            chat_templates: card.chat_templates,
            lora,
        });
    }
    let has_conversations = config.data.has_conversations();
    let saved = has_conversations.then(|| saved_card(config)).flatten();
    Ok(match saved {
        Some(card) => ModelParts {
            special: card.special,
            chat_templates: card.chat_templates,
            lora: None,
        },
        None => ModelParts {
            special: ModelTokens::trained(roles.eos, roles.pad),
            chat_templates: BTreeMap::new(),
            lora: None,
        },
    })
}

/// Reads the conversations of `config`, if it has any. Sequences become as short as the longest of them allows.
fn read_conversations(
    config: &mut RunConfig,
    dataset: &Dataset,
    model: &mut ModelParts,
) -> Result<Option<Conversations>, TrainError> {
    if !config.data.has_conversations() {
        return Ok(None);
    }
    let max_length = config.sequence_length();
    let chat_model = ChatModel {
        tokenizer: Arc::clone(&dataset.tokenizer),
        special: &mut model.special,
        templates: &mut model.chat_templates,
        prompt_template: config.samples.prompt_template.clone(),
    };
    let conversations = Conversations::read(config, max_length, chat_model)?;
    if config.train.sequence_length.is_none() {
        let longest = conversations
            .longest_row()
            .next_multiple_of(LENGTH_MULTIPLE);
        config.train.sequence_length = Some(longest.min(max_length));
    }
    Ok(Some(conversations))
}

/// Rows of conversations are padded to a multiple of this many tokens.
const LENGTH_MULTIPLE: usize = 32;

/// A checked configuration, before its data is read.
struct BaseConfig {
    config: RunConfig,
    device: Device,
    /// What the run takes over from the model in `start_from`.
    source: Option<SourceModel>,
}

/// What a run takes over from the model in `start_from`, besides architecture and weights.
struct SourceModel {
    tokenizer: Arc<dyn Tokenizer>,
    card: ModelCard,
    lora: Option<LoraBase>,
}

impl SourceModel {
    /// The tokenizer of a model that is one file.
    fn given_tokenizer(&self) -> Option<Arc<dyn Tokenizer>> {
        self.lora.as_ref()?.model.tokenizer_json()?;
        Some(Arc::clone(&self.tokenizer))
    }
}

impl BaseConfig {
    /// Opens the device of `config`, unless there is an open one.
    fn new(mut config: RunConfig, open_device: Option<&Device>) -> Result<Self, TrainError> {
        let source = apply_base_model(&mut config)?;
        let parameters = config.model.parameter_counts().total();
        config.apply_lora_defaults(Some(parameters));
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
            device,
            source,
        })
    }

    fn with_dataset(self, dataset: Dataset) -> Result<RunSetup, TrainError> {
        let Self {
            mut config,
            device,
            source,
        } = self;
        let mut model = model_tokens(&config, source, &dataset)?;
        resolve_vocab_size(&mut config, dataset.tokenizer.as_ref())?;
        check_parameters(&config)?;
        let conversations = read_conversations(&mut config, &dataset, &mut model)?;
        let padding_id = dataset.tokenizer.special_tokens().padding_id();
        let loader_config = LoaderConfig {
            context_length: config.sequence_length(),
            batch_size: config.train.batch_size,
            grad_accum_steps: config.train.accumulation,
            order: config.data.order,
            packing: config.data.packing,
            seed: config.seed,
            padding_id,
        };
        let loader = match &conversations {
            Some(read) => Loader::from_samples(read.train.clone(), loader_config)?,
            None => Loader::new(dataset.train.clone(), loader_config)?,
        };
        resolve_epochs(&mut config, &loader)?;
        let validation = validation_windows(&config, &dataset, conversations.as_ref(), padding_id)?;
        let ModelParts {
            special,
            chat_templates,
            lora,
        } = model;
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
            trained_on: None,
        })
    }
}

/// `config` for a dataset that is given: its own data is not read.
fn without_conversations(mut config: RunConfig) -> RunConfig {
    if config.data.has_conversations() {
        config.data = DataConfig {
            order: config.data.order,
            packing: config.data.packing,
            ..DataConfig::default()
        };
    }
    config
}

/// Sets the EOS token after each document to `eos`, which the run's configuration chooses instead of the
/// declared one. The model then ends its completions with that token too.
fn end_documents_with(special: &mut ModelTokens, eos: Option<u32>) {
    if special.source.is_some() {
        special.document_eos_id = eos;
        special.eos_token = None;
        let new = eos.filter(|id| !special.eos_ids.contains(id));
        special.eos_ids.extend(new);
    }
}

/// The windows of the validation split, if there is one.
fn validation_windows(
    config: &RunConfig,
    dataset: &Dataset,
    conversations: Option<&Conversations>,
    padding_id: u32,
) -> Result<Option<EvalWindows>, TrainError> {
    let (packing, length) = (config.data.packing, config.sequence_length());
    let windows = match conversations.map(|read| &read.validation) {
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

    /// Whether the device compiles programs before it can compute, and has its own memory.
    pub(crate) fn is_on_gpu(&self) -> bool {
        let cpus = [DeviceName::Flex, DeviceName::NdArray];
        let is_device = |name: &DeviceName| name.open().is_ok_and(|cpu| cpu == self.device);
        !cpus.iter().any(is_device)
    }

    /// What determines the memory of a training step besides the model.
    pub(crate) fn training_shape(&self) -> TrainingShape {
        let train = &self.config.train;
        TrainingShape {
            batch_size: train.batch_size,
            sequence_length: self.config.sequence_length(),
            accumulation: train.accumulation,
            moments: Optimizer::state_per_parameter(&self.config.optimizer),
            recompute: train.recompute,
            fused: QuantizedMatrix::has_native_kernel(&self.device),
        }
    }

    /// The estimated memory of a training step.
    pub(crate) fn training_memory(&self) -> MemoryEstimate {
        let (model, shape) = (&self.config.model, self.training_shape());
        let Some(base) = &self.lora else {
            return model.training_memory(&shape);
        };
        let bits = match base.description.bits {
            Some(8) => Some(Bits::Int8),
            Some(_) => Some(Bits::Int4),
            None => None,
        };
        model.adapter_memory(&shape, base.trained_parameters, bits)
    }

    /// The rows of a validation batch: `validation.batch_size`, or fewer if they would take more memory than
    /// training does.
    pub(crate) fn validation_rows(&self) -> usize {
        let (model, shape) = (&self.config.model, self.training_shape());
        let training = self.training_memory();
        // Gradients and activations are not in memory during a validation.
        let free = (training.gradients + training.activations).max(MIN_VALIDATION_MEMORY);
        let per_token = model.inference_memory(shape.sequence_length, shape.fused);
        let row = per_token.saturating_mul(shape.sequence_length).max(1);
        let affordable = (free / row).max(1);
        self.config.validation.batch_size.min(affordable)
    }

    /// Identifies the data, so that a resumed run can check that it is unchanged.
    pub fn data_fingerprint(&self) -> String {
        if let Some(conversations) = &self.conversations {
            return format!(
                "{}, vocabulary {}",
                conversations.fingerprint(),
                self.dataset.tokenizer.hash()
            );
        }
        format!(
            "train {}, validation {}, vocabulary {}",
            self.dataset.train.content_hash(),
            self.dataset.validation.content_hash(),
            self.dataset.tokenizer.hash()
        )
    }

    /// Describes the data: its sources, as they were named when the run started, and the number of tokens in each
    /// split.
    pub fn data_description(&self) -> String {
        if let Some(described) = &self.trained_on {
            return described.clone();
        }
        if let Some(conversations) = &self.conversations {
            return conversations.description();
        }
        let sources = self
            .dataset
            .card
            .as_ref()
            .map(|card| card.sources.join(", "));
        format!(
            "{}: {} training and {} validation tokens",
            sources.unwrap_or_else(|| "token files of another program".to_string()),
            self.dataset.train.len(),
            self.dataset.validation.len()
        )
    }

    /// Number of tokens for training and for validation.
    pub(crate) fn token_counts(&self) -> (usize, usize) {
        match &self.conversations {
            Some(read) => (read.train.token_count(), read.validation.token_count()),
            None => (self.dataset.train.len(), self.dataset.validation.len()),
        }
    }

    /// Warnings to report before the run starts.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let slow = !self.config.train.precision.is_fast(&self.device);
        let slow = slow.then(|| {
            "this CPU has no bf16 instructions: train.precision = \"bf16\" is less precise than f32 and \
             not faster here"
                .to_string()
        });
        let config = self.config.warnings.iter().cloned();
        config
            .chain(slow)
            .chain(self.unknown_tokens_warning())
            .chain(self.whole_documents_warning())
            .chain(self.prompt_warnings())
            .chain(self.document_warnings())
            .chain(
                self.conversations
                    .iter()
                    .flat_map(|read| read.report.warnings()),
            )
            .collect()
    }

    fn unknown_tokens_warning(&self) -> Option<String> {
        let card = self.dataset.card.as_ref()?;
        let what = format!("{} are", card.unknown_share());
        let special = self.dataset.tokenizer.special_tokens();
        (!card.unknown.is_empty()).then(|| unknown_note(&what, &card.unknown, special))
    }

    fn whole_documents_warning(&self) -> Option<String> {
        let card = self.dataset.card.as_ref()?;
        let is_long = card.bytes >= LONG_TEXT && self.config.data.prepared.is_none();
        whole_documents_note(self.dataset.tokenizer.as_ref()).filter(|_| is_long)
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

/// Applies architecture and tokenizer of the model in `start_from`, if there is one.
/// Its prompt template too, unless the configuration has one.
fn apply_base_model(config: &mut RunConfig) -> Result<Option<SourceModel>, TrainError> {
    let Some(path) = &config.start_from else {
        return Ok(None);
    };
    let path = resolve_model_dir(path);
    let source = start_from::open(&path, config)?;
    let card = source.card().clone();
    card.check_templates()?;
    let lora = LoraBase::of(config, &source)?;
    let base = source.model;
    let dropout = config.model.dropout;
    let requested = ModelConfig {
        dropout: ModelConfig::default().dropout,
        ..config.model.clone()
    };
    let mut expected = base.config.clone();
    expected.dropout = requested.dropout;
    if requested != ModelConfig::default() && requested != expected {
        return Err(TrainError::config(
            "model",
            "differs from the architecture of the model in start_from",
            model_hint(&requested, &expected),
        ));
    }
    config.model = base.config.clone();
    config.model.dropout = dropout;
    let roles = card.special.roles();
    let tokenizer = open_tokenizer(&base, roles)?;
    if let Some(file) = &config.data.tokenizer.file
        && nextword_data::load_tokenizer(file)?.hash() != tokenizer.hash()
    {
        return Err(TrainError::config(
            "data.tokenizer.file",
            "is another tokenizer than that of the model in start_from",
            "remove data.tokenizer.file",
        ));
    }
    let is_folder = base.tokenizer_json().is_none();
    config.data.tokenizer.file = Some(base.tokenizer_path());
    config.start_from = Some(path);
    let eos = tokenizer.special_tokens().eos;
    let eos = eos
        .and_then(|id| tokenizer.id_to_token(id))
        .unwrap_or_default();
    if roles.is_some() && config.data.tokenizer.eos == TokenizerConfig::DEFAULT_EOS {
        // Documents end with the token that the model declares.
        config.data.tokenizer.eos = eos;
    } else if !is_folder
        && ![TokenizerConfig::DEFAULT_EOS, &eos].contains(&&*config.data.tokenizer.eos)
    {
        return Err(TrainError::config(
            "data.tokenizer.eos",
            format!(
                "`{}` is not the EOS token of the GGUF file, `{eos}`",
                config.data.tokenizer.eos
            ),
            "remove it, or convert the file with `nextword import` to choose another token",
        ));
    }
    let template = &mut config.samples.prompt_template;
    if template.is_none() {
        template.clone_from(&card.prompt_template);
    }
    Ok(Some(SourceModel {
        tokenizer,
        card,
        lora,
    }))
}

/// The tokenizer of a model, with the given EOS and padding tokens.
fn open_tokenizer(
    model: &ModelDir,
    roles: Option<(Option<u32>, Option<u32>)>,
) -> Result<Arc<dyn Tokenizer>, TrainError> {
    let path = model.tokenizer_path();
    Ok(match model.tokenizer_json() {
        Some(json) => parse_tokenizer_with_roles(json, &path.display().to_string(), roles)?,
        None => load_tokenizer_with_roles(path, roles)?,
    })
}

/// How to correct a `[model]` that differs from that of the model in `start_from`.
fn model_hint(requested: &ModelConfig, expected: &ModelConfig) -> String {
    let length = requested.context_length;
    let is_default = length == ModelConfig::default().context_length;
    if is_default || length > expected.context_length {
        return "leave out all of [model] except dropout".to_string();
    }
    format!(
        "leave out all of [model] except dropout; train.sequence_length = {length} trains on sequences of that \
         length"
    )
}

/// Resolves a run folder to its best or last model folder; other paths stay the same.
///
/// ```
/// use std::path::Path;
///
/// let model = Path::new("models/mine"); // Not a run folder.
/// assert_eq!(nextword_train::resolve_model_dir(model), model);
/// ```
pub fn resolve_model_dir(path: &Path) -> PathBuf {
    let candidates = ["best", "last"].map(|name| path.join(name));
    let is_run = path.join("run.toml").is_file();
    let has_weights = |folder: &PathBuf| {
        let mut files = ["model.safetensors", "adapter.safetensors"].into_iter();
        files.any(|file| folder.join(file).is_file())
    };
    let found = candidates.into_iter().find(has_weights);
    found
        .filter(|_| is_run)
        .unwrap_or_else(|| path.to_path_buf())
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
