//! A run's configuration: the sum of its parts' configurations.

use std::path::PathBuf;

use nextword_data::DataConfig;
use nextword_model::{ModelConfig, Precision};
use serde::{Deserialize, Serialize};

use crate::{OptimizerConfig, ScheduleConfig, TrainError};

/// A run: what is trained on what, how, and what is kept. The file format is TOML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The run's name; its folder is `runs/NAME` unless `out` says otherwise.
    pub name: String,
    /// The run's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// Seed of everything random: weights, data order, dropout, samples.
    pub seed: u64,
    /// The device's name; `--device` overrides it.
    pub device: String,
    /// A record whose weights the run starts from (finetuning), instead of random ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_from: Option<PathBuf>,
    /// Parameters that the model must have: a check, for configurations that state a known model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_parameters: Option<usize>,
    /// What is trained on.
    pub data: DataConfig,
    /// The architecture.
    pub model: ModelConfig,
    /// How long and in what portions.
    pub train: TrainConfig,
    /// How gradients change weights.
    pub optimizer: OptimizerConfig,
    /// The course of the learning rate.
    pub schedule: ScheduleConfig,
    /// When the validation loss is measured.
    pub validation: ValidationConfig,
    /// When training state is saved and how much of it is kept.
    pub checkpoint: CheckpointConfig,
    /// Text sampled while the model learns.
    pub samples: SampleConfig,
    /// Sentences that are looked into while the model learns.
    #[serde(skip_serializing_if = "ProbeConfig::is_default")]
    pub probes: ProbeConfig,
    /// Warnings about the configuration itself, such as a check that an override switched off. They are
    /// reported before the run begins and are not part of the file.
    #[serde(skip)]
    pub warnings: Vec<String>,
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
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            validation: ValidationConfig::default(),
            checkpoint: CheckpointConfig::default(),
            samples: SampleConfig::default(),
            probes: ProbeConfig::default(),
            warnings: Vec::new(),
        }
    }
}

/// How long a run is and in what portions it sees its data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer updates.
    pub steps: u64,
    /// Sequences in one micro-batch: what the device works on at once.
    pub batch_size: usize,
    /// Micro-batches whose gradients are added up for one update.
    pub accumulation: usize,
    /// The arithmetic of matrix products: `f32`, or `bf16` where the device has it. Weights, moments,
    /// norms, the loss and validation stay in f32.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Keep only what enters each block, and compute the rest anew in the backward pass: a third more
    /// work, the same numbers, and of the activations only those of one block in memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// Updates between two lines of progress and of `metrics.jsonl`.
    pub log_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 12,
            accumulation: 1,
            precision: Precision::F32,
            recompute: false,
            log_every: 10,
        }
    }
}

/// When the validation loss is measured and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Updates between two measurements; 0 measures at the end only.
    pub every: u64,
    /// Windows measured, the same ones each time, spread over the split; 0 is the whole split.
    pub windows: usize,
    /// Sequences measured at once.
    pub batch_size: usize,
    /// Stop after this many measurements in a row without a better one; 0 never stops.
    pub patience: u64,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every: 250,
            windows: 0,
            batch_size: 16,
            patience: 0,
        }
    }
}

/// When training state is saved and how much of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Updates between two checkpoints; 0 saves at the end and on interruption only.
    pub every: u64,
    /// How many of the newest are kept.
    pub keep_last: usize,
    /// Checkpoints whose step is a multiple of this are kept for good; 0 keeps none.
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

/// Text sampled while the model learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Updates between two samples; 0 takes none.
    pub every: u64,
    /// What each sample continues.
    pub prompts: Vec<String>,
    /// The most tokens of a sample.
    pub max_tokens: usize,
    /// 0 always takes the likeliest token, 1 follows the model's probabilities.
    pub temperature: f64,
    /// How `generate` puts a prompt to the trained model: `{prompt}` stands for what the user types.
    /// `StatQuest`'s way is `"{prompt} <EOS>"`.
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

/// Sentences that are looked into while the model learns: attention and next words are kept in the
/// run's folder `probes`, for `explain --over-training` and `plot --attention`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// The sentences, put as `generate` puts prompts.
    pub sentences: Vec<String>,
    /// Updates between two looks; 0 looks whenever the validation loss is measured, and at the end.
    pub every: u64,
}

impl ProbeConfig {
    /// A run without probes has no `[probes]` table in its `run.toml`.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl RunConfig {
    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        self.out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(&self.name))
    }

    /// Checks what can be checked before any data is read. The vocabulary may still be open (0).
    ///
    /// # Errors
    /// [`TrainError::Config`] or [`TrainError::Model`] that names the key and the fix.
    pub fn validate(&self) -> Result<(), TrainError> {
        let mut model = self.model.clone();
        model.vocab_size = model.vocab_size.max(1);
        model.validate()?;
        let positive = [
            ("train.steps", self.train.steps as usize),
            ("train.batch_size", self.train.batch_size),
            ("train.accumulation", self.train.accumulation),
            ("train.log_every", self.train.log_every as usize),
            ("validation.batch_size", self.validation.batch_size),
            ("checkpoint.keep_last", self.checkpoint.keep_last),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(TrainError::config(key, "it is 0", "set it to 1 or more"));
            }
        }
        if self.name.is_empty() || self.name.contains(['/', '\\', '\0']) || self.name == ".." {
            return Err(TrainError::config(
                "name",
                format!("`{}` cannot be a folder's name", self.name.escape_debug()),
                "use letters, digits and dashes; `out` takes a path",
            ));
        }
        if !(self.samples.temperature.is_finite() && self.samples.temperature >= 0.0) {
            return Err(TrainError::config(
                "samples.temperature",
                format!("{} is not a temperature", self.samples.temperature),
                "use 0.8, or 0 for the likeliest token",
            ));
        }
        if let Some(template) = &self.samples.prompt_template
            && !template.contains("{prompt}")
        {
            return Err(TrainError::config(
                "samples.prompt_template",
                format!("`{template}` has no place for the prompt"),
                "write {prompt} where it belongs, as in \"{prompt} <EOS>\"",
            ));
        }
        if self.data.path.as_deref() == Some(std::path::Path::new("-")) {
            return Err(TrainError::config(
                "data.path",
                "standard input cannot be read again when the run is resumed",
                "nextword prepare - --out FOLDER, then data.prepared = \"FOLDER\"",
            ));
        }
        self.validate_schedule()?;
        self.optimizer.validate()
    }

    fn validate_schedule(&self) -> Result<(), TrainError> {
        let schedule = &self.schedule;
        let rate_ok = |rate: f64| rate.is_finite() && rate >= 0.0;
        if !rate_ok(schedule.learning_rate) || !rate_ok(schedule.min_learning_rate) {
            return Err(TrainError::config(
                "schedule.learning_rate",
                "a learning rate is not a number of 0 or more",
                "a usual value is 1e-3",
            ));
        }
        if schedule.min_learning_rate > schedule.learning_rate {
            return Err(TrainError::config(
                "schedule.min_learning_rate",
                format!(
                    "{} is above schedule.learning_rate = {}",
                    schedule.min_learning_rate, schedule.learning_rate
                ),
                "a tenth of the learning rate is usual",
            ));
        }
        if schedule.warmup_steps >= self.train.steps && schedule.warmup_steps > 0 {
            return Err(TrainError::config(
                "schedule.warmup_steps",
                format!(
                    "warm-up of {} steps leaves nothing of train.steps = {}",
                    schedule.warmup_steps, self.train.steps
                ),
                "a tenth of the steps or less is usual",
            ));
        }
        Ok(())
    }
}
