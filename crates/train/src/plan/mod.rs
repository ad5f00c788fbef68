//! Estimates of a run's size, memory, disk space and time, before it starts.
//!
//! ```
//! use std::path::Path;
//!
//! use nextword_model::presets;
//! use nextword_train::plan::Plan;
//! use nextword_train::{parse_config, prepare_run};
//!
//! # fn main() -> Result<(), nextword_train::TrainError> {
//! let text = r#"
//!     [data]
//!     builtin = "statquest"
//!     packing = "documents"
//!     tokenizer.kind = "word"
//!     tokenizer.unk = ""
//!     split.validation = 0.0
//! "#;
//! let mut config = parse_config(text, Path::new("example.toml"), &[])?;
//! config.model = presets::statquest(5);
//! let plan = Plan::estimate(&prepare_run(config)?);
//! assert_eq!(plan.parameters.total, 37);
//! assert_eq!(plan.memory_bytes.by_part.weights, 37 * 4); // f32
//! assert_eq!(plan.memory_bytes.by_part.optimizer, 2 * 37 * 4); // AdamW's two moments
//! assert_eq!(plan.memory_shortage(), None);
//! # Ok(())
//! # }
//! ```

mod bounded;
mod disk;
mod lora;
mod memory;
mod ranks;
mod speed;

use nextword_data::Baselines;
use nextword_model::{MemoryEstimate, ParameterCounts, resident_memory};
use serde::{Deserialize, Serialize};

use crate::{RunSetup, TrainError};

pub use disk::DiskShortage;
pub use lora::{LoraAlternatives, LoraPlan};
pub use memory::MemoryShortage;
pub use ranks::{LinkSpeed, RankPlan};
pub use speed::MeasuredSpeed;

/// Memory that the program takes for code and threads once it trains.
const WORKING_MEMORY: usize = 12 << 20;

/// The estimated cost of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The run's name.
    pub name: String,
    /// The device's name.
    pub device: String,
    /// Number of parameters.
    pub parameters: Parameters,
    /// What a run with `[lora]` trains of them; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraPlan>,
    /// Floating-point operations per token, forward and backward.
    pub training_flops_per_token: u64,
    /// Floating-point operations per token, forward only.
    pub forward_flops_per_token: u64,
    /// Memory while training.
    pub memory_bytes: Memory,
    /// Size of one checkpoint on disk.
    pub checkpoint_bytes: u64,
    /// Size of all checkpoints and both models on disk at the end of the run.
    pub disk_bytes: u64,
    /// The most of it at a time during the run.
    #[serde(default)]
    pub disk_peak_bytes: u64,
    /// The data and how much of it the run uses.
    pub data: DataUse,
    /// Validation losses of n-gram baselines; `None` without validation data or
    /// [`with_baselines`](Self::with_baselines).
    pub baselines: Option<BaselineLosses>,
    /// Measured speed; `None` without [`with_speed`](Self::with_speed).
    pub measured: Option<MeasuredSpeed>,
    /// The cost on several ranks; `None` without [`with_ranks`](Self::with_ranks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<RankPlan>,
}

/// Number of parameters, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// All parameters.
    pub total: usize,
    /// The parts, whose fields follow the total in JSON.
    #[serde(flatten)]
    pub by_part: ParameterCounts,
}

/// Bytes of memory, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All parts.
    pub total: usize,
    /// The program with the data, which is in memory already: 0 on a GPU, which has its own memory, and if the
    /// system does not report it.
    #[serde(default)]
    pub program: usize,
    /// The other parts, whose fields follow the total in JSON.
    #[serde(flatten)]
    pub by_part: MemoryEstimate,
}

/// The data of a run and how much of it the run uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataUse {
    /// Number of training tokens.
    pub train_tokens: usize,
    /// Of conversations, the number of training tokens that the model learns to predict; `None` for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<usize>,
    /// Number of validation tokens.
    pub validation_tokens: usize,
    /// Vocabulary size of the model.
    pub vocab_size: usize,
    /// Number of updates.
    pub steps: u64,
    /// Sequences per micro-batch.
    #[serde(default)]
    pub batch_size: usize,
    /// Tokens per sequence.
    #[serde(default)]
    pub sequence_length: usize,
    /// Tokens per update that the model learns to predict: padding does not count. A mean if documents are
    /// not packed.
    pub tokens_per_step: usize,
    /// Number of passes over the training data.
    pub epochs: f64,
}

/// Validation losses of baselines that count n-grams, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineLosses {
    /// All tokens equally likely.
    pub uniform: f64,
    /// Token frequencies.
    pub unigram: f64,
    /// Frequencies of pairs of tokens.
    pub bigram: f64,
}

impl From<ParameterCounts> for Parameters {
    fn from(counts: ParameterCounts) -> Self {
        Self {
            total: counts.total(),
            by_part: counts,
        }
    }
}

impl From<MemoryEstimate> for Memory {
    fn from(estimate: MemoryEstimate) -> Self {
        Self {
            total: estimate.total(),
            program: 0,
            by_part: estimate,
        }
    }
}

impl Parameters {
    /// The parts with their names, except those that the model does not have.
    ///
    /// ```
    /// use nextword_model::presets;
    /// use nextword_train::plan::Parameters;
    ///
    /// let parameters = Parameters::from(presets::statquest(5).parameter_counts());
    /// let parts: Vec<_> = parameters.parts().collect();
    /// assert_eq!(parts, [("token embedding", 10), ("attention", 12), ("output layer", 15)]);
    /// ```
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let counts = &self.by_part;
        [
            ("token embedding", counts.token_embedding),
            ("position embedding", counts.position_embedding),
            ("attention", counts.attention),
            ("feed-forward", counts.feed_forward),
            ("norms", counts.norm),
            ("output layer", counts.head),
        ]
        .into_iter()
        .filter(|(_, n)| *n > 0)
    }
}

impl Plan {
    /// Estimates from the configuration and the number of tokens alone; computes nothing on the device.
    pub fn estimate(setup: &RunSetup) -> Self {
        let config = &setup.config;
        let model = &config.model;
        let seq = config.sequence_length();
        let resident = resident_memory().filter(|_| !setup.is_on_gpu());
        let memory = Memory {
            program: resident.map_or(0, |bytes| bytes as usize + WORKING_MEMORY),
            ..Memory::from(setup.training_memory())
        };
        let memory = Memory {
            total: memory.by_part.total() + memory.program,
            ..memory
        };
        let lora = LoraPlan::of_run(setup);
        let trained = lora.as_ref().map(|lora| lora.trained_parameters);
        let weights = trained.map_or(memory.by_part.weights, |trained| 4 * trained) as u64;
        // Through frozen weights, gradients of activations flow only.
        let training_flops = match trained {
            None => model.training_flops(seq),
            Some(trained) => 2 * model.forward_flops(seq) + 6 * trained,
        };
        let checkpoint_bytes = weights + memory.by_part.optimizer as u64;
        Self {
            name: config.name.clone(),
            device: setup.device_name(),
            parameters: model.parameter_counts().into(),
            lora,
            training_flops_per_token: training_flops as u64,
            forward_flops_per_token: model.forward_flops(seq) as u64,
            memory_bytes: memory,
            checkpoint_bytes,
            disk_bytes: checkpoint_bytes * disk::retained_checkpoints(config) + 2 * weights,
            disk_peak_bytes: disk::peak_bytes(config, checkpoint_bytes, weights),
            data: DataUse::of_run(setup),
            baselines: None,
            measured: None,
            ranks: None,
        }
    }

    /// Adds the losses of n-gram baselines on the run's data.
    ///
    /// # Errors
    /// [`TrainError::Data`] if the tokens cannot be read.
    pub fn with_baselines(mut self, setup: &RunSetup) -> Result<Self, TrainError> {
        let data = &setup.dataset;
        if data.validation.len() >= 2 {
            let vocab_size = data.tokenizer.vocab_size();
            let losses = Baselines::compute(&data.train, &data.validation, vocab_size)?;
            self.baselines = Some(BaselineLosses {
                uniform: losses.uniform,
                unigram: losses.unigram,
                bigram: losses.bigram,
            });
        }
        Ok(self)
    }
}

impl DataUse {
    fn of_run(setup: &RunSetup) -> Self {
        let config = &setup.config;
        let (loader, steps) = (&setup.loader, config.train.steps as f64);
        let (train_tokens, validation_tokens) = setup.token_counts();
        let tokens_per_step = loader.targets_per_step();
        let sequences = loader.sequences_per_step() as f64 * steps;
        let epochs = sequences / loader.sequences_per_epoch() as f64;
        Self {
            train_tokens,
            trained_tokens: setup.trained_tokens(),
            validation_tokens,
            vocab_size: config.model.vocab_size,
            steps: config.train.steps,
            batch_size: config.train.batch_size,
            sequence_length: config.sequence_length(),
            tokens_per_step: tokens_per_step.round() as usize,
            epochs,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::{Builtin, DataConfig, Packing, TokenizerKind};
    use nextword_model::presets;

    use super::*;
    use crate::{RunConfig, prepare_run};

    fn statquest() -> RunConfig {
        let mut config = RunConfig {
            model: presets::statquest(5),
            ..RunConfig::default()
        };
        config.data.builtin = Some(Builtin::Statquest);
        config.data.packing = Packing::Documents;
        config.data.tokenizer.kind = TokenizerKind::Word;
        config.data.tokenizer.unk.clear();
        config.data.split.validation = 0.0;
        config.train.steps = 10;
        config.schedule.warmup_steps = 0;
        config
    }

    #[test]
    fn disk_holds_the_kept_checkpoints_and_both_models() {
        let mut config = statquest();
        config.checkpoint.every = 2;
        config.checkpoint.keep_last = 3;
        let plan = Plan::estimate(&prepare_run(config).unwrap());
        let weights = 37 * 4;
        assert_eq!(plan.checkpoint_bytes, 3 * weights);
        assert_eq!(plan.disk_bytes, 3 * 3 * weights + 2 * weights);
    }

    #[test]
    fn lanes_keep_the_sums_of_complete_subtrees_in_memory() {
        let copies = |lanes| {
            let mut config = statquest();
            (config.train.accumulation, config.train.lanes) = (8, lanes);
            let plan = Plan::estimate(&prepare_run(config).unwrap());
            plan.memory_bytes.by_part.gradients / (37 * 4)
        };
        // The gradients of a micro-batch, the sum of its lane, and sums of 1, 2 and 4 lanes.
        assert_eq!([1, 2, 4, 8].map(copies), [2, 3, 4, 4]);
    }

    #[test]
    fn epochs_count_passes_over_the_training_tokens() {
        let setup = prepare_run(statquest()).unwrap();
        let data = Plan::estimate(&setup).data;
        // 12 sequences per step; both documents have 6 tokens, of which 5 are targets.
        assert_eq!((data.train_tokens, data.tokens_per_step), (12, 12 * 5));
        assert!((data.epochs - 10.0 * 12.0 / 2.0).abs() < 1e-9, "{data:?}");
        let packed = RunConfig {
            data: DataConfig {
                packing: Packing::Packed,
                ..statquest().data
            },
            ..statquest()
        };
        let setup = prepare_run(packed).unwrap();
        let data = Plan::estimate(&setup).data;
        assert_eq!(data.tokens_per_step, 12 * setup.config.model.context_length);
        let windows = (12 - 1) / setup.config.model.context_length;
        let expected = 10.0 * 12.0 / windows as f64;
        assert!((data.epochs - expected).abs() < 1e-9, "{data:?}");
    }

    #[test]
    fn a_plan_can_be_read_from_its_json() {
        let plan = Plan::estimate(&prepare_run(statquest()).unwrap());
        let json = serde_json::to_string(&plan).unwrap();
        let memory = r#""memory_bytes":{"total":"#;
        assert!(json.contains(memory), "{json}");
        let parts = r#""parameters":{"total":37,"token_embedding":10,"position_embedding":0,"attention":12,"feed_forward":0,"norm":0,"head":15}"#;
        assert!(json.contains(parts), "{json}");
        let read: Plan = serde_json::from_str(&json).unwrap();
        assert_eq!(read.parameters, plan.parameters);
        assert_eq!(read.memory_bytes, plan.memory_bytes);
        assert_eq!((read.disk_bytes, read.measured), (plan.disk_bytes, None));
    }

    #[test]
    fn the_time_of_other_texts_counts_as_validation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("general.txt");
        std::fs::write(&path, "what is statquest awesome ".repeat(40)).unwrap();
        let mut config = statquest();
        config.validation.every = 5;
        let name = "general".to_string();
        config.validation.also = vec![crate::OtherText { name, path }];
        let setup = prepare_run(config).unwrap();
        // Twice while training, and once before.
        let counted: Vec<u64> = speed::evaluations(&setup).map(|(_, times)| times).collect();
        assert_eq!(counted, [3]);
        let plan = Plan::estimate(&setup);
        let limit = std::time::Duration::from_millis(100);
        for plan in [
            plan.clone().with_speed(&setup, 1).unwrap(),
            plan.with_speed_within(&setup, limit).unwrap(),
        ] {
            assert!(plan.measured.unwrap().validation_seconds > 0.0);
        }
    }

    #[test]
    fn measured_time_covers_all_steps() {
        let setup = prepare_run(statquest()).unwrap();
        let plan = Plan::estimate(&setup).with_speed(&setup, 2).unwrap();
        let measured = plan.measured.unwrap();
        let tokens = (plan.data.tokens_per_step * 10) as f64;
        let seconds = tokens / measured.tokens_per_second;
        assert!((measured.training_seconds / seconds - 1.0).abs() < 1e-6);
        assert!(measured.first_loss > 0.0 && measured.validation_seconds == 0.0);
        let unmeasured = Plan::estimate(&setup).with_speed(&setup, 0).unwrap();
        assert_eq!(unmeasured.measured, None);
    }
}
