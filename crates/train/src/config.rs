//! The configuration of a run.

use std::path::PathBuf;

use nextword_base::count;
use nextword_data::{DataConfig, TrainOn};
use nextword_model::{ModelConfig, Precision};
use serde::{Deserialize, Serialize};

use crate::{
    LoraSettings, OptimizerConfig, PreferenceSettings, ScheduleConfig, ScheduleKind, TrainError,
    UnsetKeys, ValidationConfig,
};

/// The configuration of a run, stored as TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The run's name; its folder is `runs/NAME` unless `out` is set.
    pub name: String,
    /// The run's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Seed of all randomness: initial weights, data order, dropout, samples.
    pub seed: u64,
    /// Device name; `--device` overrides it.
    pub device: String,
    /// The model folder whose weights the run starts from (finetuning) instead of random ones. With `[lora]` also
    /// a quantized one, a GGUF file, or the folder of an adapter, whose training then continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_from: Option<PathBuf>,
    /// Expected number of parameters: a check for configurations of a known model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_parameters: Option<usize>,
    /// The training data.
    pub data: DataConfig,
    /// The architecture.
    pub model: ModelConfig,
    /// Number of steps and batch sizes.
    pub train: TrainConfig,
    /// Low-rank adaptation of the model in `start_from`; absent: all weights are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSettings>,
    /// Training on preferences; absent: the run is supervised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferences: Option<PreferenceSettings>,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate schedule.
    pub schedule: ScheduleConfig,
    /// How often the validation loss is computed.
    pub validation: ValidationConfig,
    /// How often checkpoints are saved and how many are kept.
    pub checkpoint: CheckpointConfig,
    /// Text samples during training.
    pub samples: SampleConfig,
    /// Sentences that are probed during training.
    #[serde(skip_serializing_if = "ProbeConfig::is_default")]
    pub probes: ProbeConfig,
    /// Training on several ranks.
    #[serde(skip_serializing_if = "ParallelConfig::is_default")]
    pub parallel: ParallelConfig,
    /// Warnings about the configuration itself, such as a check that an override disabled. They are
    /// reported before the run starts and are not part of the file.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// The keys that the file leaves out and that have defaults of their own in `LoRA` runs (see
    /// [`apply_lora_defaults`](Self::apply_lora_defaults)), or, for the warmup, in runs for a number of epochs.
    #[serde(skip)]
    pub unset: UnsetKeys,
    /// The folder of the run whose stored configuration this is: the resumed run keeps the chat templates and special
    /// tokens of the model in it. Set by [`RunFolder::open`](crate::RunFolder::open); not part of the file.
    #[serde(skip)]
    pub run_folder: Option<PathBuf>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            name: "run".to_string(),
            out: None,
            seed: 1337,
            device: "flex".to_string(),
            start_from: None,
            expect_parameters: None,
            data: DataConfig::default(),
            model: ModelConfig::default(),
            train: TrainConfig::default(),
            lora: None,
            preferences: None,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            validation: ValidationConfig::default(),
            checkpoint: CheckpointConfig::default(),
            samples: SampleConfig::default(),
            probes: ProbeConfig::default(),
            parallel: ParallelConfig::default(),
            warnings: Vec::new(),
            unset: UnsetKeys::default(),
            run_folder: None,
        }
    }
}

/// Number of steps, batch sizes and precision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of optimizer updates.
    pub steps: u64,
    /// Number of passes over the training data, instead of `steps`: the run stores the steps that it needs for
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Sequences per micro-batch, which the device processes at once.
    pub batch_size: usize,
    /// Micro-batches per update (gradient accumulation).
    pub accumulation: usize,
    /// Contiguous runs of micro-batches whose gradients are added in a fixed tree, a divisor of `accumulation`: the
    /// most ranks that can share a step. The results depend on it, but not on the number of ranks. With 1, one rank
    /// adds the micro-batches from left to right.
    #[serde(skip_serializing_if = "is_one")]
    pub lanes: usize,
    /// Tokens per training and validation sequence, at most `model.context_length`; absent:
    /// `model.context_length`. Shorter sequences take less memory and need less text; the model keeps its
    /// context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<usize>,
    /// Precision of matrix products: `f32`, or `bf16` on devices that support it. Weights, moments,
    /// norms, the loss and validation stay in f32.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Activation recomputation: save only the input of each block and recompute the rest in the backward
    /// pass. The results are the same, with a third more work and the activations of one block in memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Updates between two progress lines and between two lines of `metrics.jsonl`.
    pub log_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            epochs: None,
            batch_size: 12,
            accumulation: 1,
            lanes: 1,
            sequence_length: None,
            precision: Precision::F32,
            recompute: false,
            log_every: 10,
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde calls.
fn is_one(number: &usize) -> bool {
    *number == 1
}

/// Ranks that train together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// Seconds that a rank waits for the others before it ends the run: more than rank 0 takes to validate, sample and
    /// save.
    pub timeout: u64,
    /// Whether each rank has a part of the optimizer's moments and updates that part of the weights (`ZeRO` stage 1,
    /// Rajbhandari et al. 2019, arXiv 1910.02054). Results and checkpoints have the same bits on the CPU; on a GPU, the
    /// norm of the gradients is added in another order.
    pub shard_optimizer: bool,
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self {
            timeout: 1800,
            shard_optimizer: false,
        }
    }
}

impl ParallelConfig {
    #[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde calls.
    /// A run on one rank has no `[parallel]` table in its `run.toml`.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How often checkpoints are saved and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Updates between two checkpoints; 0 saves only at the end and on interruption.
    pub every: u64,
    /// Number of newest checkpoints that are kept.
    pub keep_last: usize,
    /// Checkpoints at multiples of this step are never removed; 0 keeps none of them.
    pub keep_every: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every: 500,
            keep_last: 2,
            keep_every: 0,
        }
    }
}

/// Text samples during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Updates between two samples; 0 disables samples.
    pub every: u64,
    /// Prompts to continue.
    pub prompts: Vec<String>,
    /// Maximum number of tokens per sample.
    pub max_tokens: usize,
    /// 0 always selects the most likely token; 1 samples from the model's probabilities.
    pub temperature: f64,
    /// Template that `generate` applies to prompts; `{prompt}` stands for the user's text. `StatQuest`
    /// uses `"{prompt} <EOS>"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            every: 0,
            prompts: Vec::new(),
            max_tokens: 200,
            temperature: 0.8,
            prompt_template: None,
        }
    }
}

/// Sentences that are probed during training: attention weights and predictions are saved in the run
/// folder's `probes`, for `explain --over-training` and `plot --attention`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// The sentences, formatted like prompts of `generate`.
    pub sentences: Vec<String>,
    /// Updates between two probes; 0 probes at each validation and at the end.
    pub every: u64,
}

impl ProbeConfig {
    /// A run without probes has no `[probes]` table in its `run.toml`.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The error of a `key` that is 0 and must be positive.
fn zero_error(key: &str, hint: impl Into<String>) -> TrainError {
    TrainError::config(key, "must be at least 1, but is 0", hint)
}

impl RunConfig {
    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        self.out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// Tokens per training and validation sequence: `train.sequence_length`, by default the model's context.
    ///
    /// ```
    /// let mut config = nextword_train::RunConfig::default();
    /// assert_eq!(config.sequence_length(), config.model.context_length);
    /// config.train.sequence_length = Some(16);
    /// assert_eq!(config.sequence_length(), 16);
    /// ```
    pub fn sequence_length(&self) -> usize {
        self.train
            .sequence_length
            .unwrap_or(self.model.context_length)
    }

    /// Checks that the training sequences fit into the model's context.
    pub(crate) fn validate_sequence_length(&self) -> Result<(), TrainError> {
        let (length, context) = (self.sequence_length(), self.model.context_length);
        if (1..=context).contains(&length) {
            return Ok(());
        }
        let key = "train.sequence_length";
        let hint = format!("set it from 1 to {context}");
        if length == 0 {
            return Err(zero_error(key, hint));
        }
        let problem = format!("{length} exceeds the model's context of {context} tokens");
        Err(TrainError::config(key, problem, hint))
    }

    /// Checks the configuration before any data is read. The vocabulary size may still be 0.
    ///
    /// # Errors
    /// [`TrainError::Config`] or [`TrainError::Model`], which names the key and the fix.
    pub fn validate(&self) -> Result<(), TrainError> {
        let mut model = self.model.clone();
        model.vocab_size = model.vocab_size.max(1);
        model.validate()?;
        let positive = [
            ("train.steps", self.train.steps as usize),
            ("train.batch_size", self.train.batch_size),
            ("train.accumulation", self.train.accumulation),
            ("train.lanes", self.train.lanes),
            ("parallel.timeout", self.parallel.timeout as usize),
            ("train.log_every", self.train.log_every as usize),
            ("validation.batch_size", self.validation.batch_size),
            ("checkpoint.keep_last", self.checkpoint.keep_last),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(zero_error(key, "set it to 1 or more"));
            }
        }
        let (lanes, accumulation) = (self.train.lanes, self.train.accumulation);
        if !accumulation.is_multiple_of(lanes) {
            return Err(TrainError::config(
                "train.lanes",
                format!("{lanes} does not divide train.accumulation = {accumulation}"),
                "set it to a divisor",
            ));
        }
        if let Some(epochs) = self.train.epochs
            && !(epochs.is_finite() && epochs > 0.0)
        {
            return Err(TrainError::config(
                "train.epochs",
                format!("must be above 0, but is {epochs}"),
                "3 passes over the data are common for finetuning",
            ));
        }
        if self.name.is_empty() || self.name.contains(['/', '\\', '\0']) || self.name == ".." {
            return Err(TrainError::config(
                "name",
                format!("`{}` is not a valid folder name", self.name.escape_debug()),
                "use letters, digits and dashes; to set a path, use `out`",
            ));
        }
        if !(self.samples.temperature.is_finite() && self.samples.temperature >= 0.0) {
            return Err(TrainError::config(
                "samples.temperature",
                format!("{} is negative or not finite", self.samples.temperature),
                "use 0.8, or 0 for the most likely token",
            ));
        }
        if let Some(template) = &self.samples.prompt_template
            && !template.contains("{prompt}")
        {
            return Err(TrainError::config(
                "samples.prompt_template",
                format!("`{template}` does not contain {{prompt}}"),
                "mark the position of the prompt, as in \"{prompt} <EOS>\"",
            ));
        }
        if self.data.path.as_deref() == Some(std::path::Path::new("-")) {
            return Err(TrainError::config(
                "data.path",
                "standard input cannot be read again on resume",
                "run `nextword prepare - --out FOLDER`, then set data.prepared = \"FOLDER\"",
            ));
        }
        // The context of the model in `start_from` is not known yet.
        match self.train.sequence_length {
            Some(0) if self.start_from.is_some() => {
                let hint =
                    "set it from 1 to the context of the model in start_from, or leave it out";
                return Err(zero_error("train.sequence_length", hint));
            }
            _ if self.start_from.is_some() => {}
            _ => self.validate_sequence_length()?,
        }
        self.validate_schedule()?;
        if let Some(lora) = &self.lora {
            lora.validate(self.optimizer.kind)?;
        }
        self.validate_preferences()?;
        self.validation.validate()?;
        self.optimizer.validate()
    }

    fn validate_preferences(&self) -> Result<(), TrainError> {
        let Some(preferences) = &self.preferences else {
            return Ok(());
        };
        if !self.data.has_conversations() {
            return Err(TrainError::config(
                "preferences",
                "the data has no conversations to compare",
                "set data.conversations to a file with `chosen` and `rejected`, or data.builtin = \"stories_preferences\"",
            ));
        }
        if self.data.train_on == TrainOn::All {
            return Err(TrainError::config(
                "data.train_on",
                "\"all\" also trains the prompts, but preferences compare completions",
                "remove data.train_on",
            ));
        }
        preferences.validate()
    }

    pub(crate) fn validate_schedule(&self) -> Result<(), TrainError> {
        let schedule = &self.schedule;
        let is_valid = |lr: f64| lr.is_finite() && lr >= 0.0;
        for (key, lr) in [
            ("schedule.learning_rate", schedule.learning_rate),
            ("schedule.min_learning_rate", schedule.min_learning_rate),
        ] {
            if !is_valid(lr) {
                return Err(TrainError::config(
                    key,
                    format!("must be a finite number >= 0, but is {lr}"),
                    "a common value is 1e-3",
                ));
            }
        }
        if schedule.min_learning_rate > schedule.learning_rate {
            return Err(TrainError::config(
                "schedule.min_learning_rate",
                format!(
                    "{} is above schedule.learning_rate = {}",
                    schedule.min_learning_rate, schedule.learning_rate
                ),
                "a tenth of the learning rate is common",
            ));
        }
        let knows_steps = self.train.epochs.is_none();
        if knows_steps && schedule.warmup_steps >= self.train.steps && schedule.warmup_steps > 0 {
            return Err(TrainError::config(
                "schedule.warmup_steps",
                format!(
                    "a warmup of {} steps does not fit into train.steps = {}",
                    schedule.warmup_steps, self.train.steps
                ),
                "use a tenth of the steps or less",
            ));
        }
        Ok(())
    }

    /// Checks that the learning rate of a new run reaches its maximum. Version 0.1 did not check this, so its
    /// runs are exempt when they are resumed.
    pub(crate) fn validate_peak(&self) -> Result<(), TrainError> {
        let schedule = &self.schedule;
        match schedule.end_step {
            Some(end)
                if end <= schedule.warmup_steps && schedule.kind != ScheduleKind::Constant =>
            {
                Err(TrainError::config(
                    "schedule.end_step",
                    format!(
                        "a schedule that ends at step {end} never reaches its learning rate, because the warmup \
                         takes {}",
                        count(schedule.warmup_steps, "step")
                    ),
                    format!("set it to {} or more", schedule.warmup_steps + 1),
                ))
            }
            _ => Ok(()),
        }
    }
}
