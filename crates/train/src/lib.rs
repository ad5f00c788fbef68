//! Training Transformers: the training loop and its parts.
//!
//! | to change | open |
//! |---|---|
//! | the options of a run | [`RunConfig`] |
//! | conversations as training data | [`Conversations`] |
//! | pairs of source and target as training data | [`Pairs`] |
//! | forward and backward pass, gradient accumulation, clipping | [`Gradients`], [`forward_backward`], [`Stepper`] |
//! | the optimizer | [`Optimizer`] |
//! | the learning rate schedule | [`ScheduleConfig`] |
//! | saving and loading checkpoints | [`checkpoint`] |
//! | runs that train an adapter | [`LoraSettings`] |
//! | training on preferences | [`PreferenceSettings`] |
//! | the training loop in a run folder | [`Trainer`] |
//! | the training loop in memory | [`InMemoryTrainer`] |
//! | estimates of memory, disk space and time | [`plan`] |
//!
//! This crate does not write to the terminal: a run reports its progress through [`Reporter`].
//!
//! # Example
//!
//! ```
//! use burn::module::Module;
//! use nextword_train::{Optimizer, forward_backward, prepare_run, read_config};
//!
//! // The parts of the loop; `Trainer` adds checkpoints, validation and reports.
//! let config = read_config("../../configs/statquest.toml".as_ref(), &[])?;
//! let setup = prepare_run(config)?; // data, device, batches
//! let mut model = setup.initial_model()?.train(); // on an autodiff device
//! let mut optimizer = Optimizer::new(setup.config.optimizer);
//! let mut losses = Vec::new();
//! for step in 0..100 {
//!     let batch = setup.loader.batch(step, 0)?; // ids and targets, [2, 6]
//!     let lr = setup.config.schedule.learning_rate(step, 100);
//!     let (loss, gradients) = forward_backward(&model, &[batch], setup.config.seed, step, false);
//!     losses.push(loss.into_scalar::<f32>());
//!     model = optimizer.update(model, gradients, lr, setup.config.schedule.learning_rate);
//! }
//! assert!(losses[99] < losses[0] / 2.0); // nats per token
//! # Ok::<(), nextword_train::TrainError>(())
//! ```

#![recursion_limit = "256"]

pub mod checkpoint;
mod completion_check;
mod config;
mod config_file;
mod config_key;
mod config_problem;
mod conversation_defaults;
mod conversations;
mod data_hints;
mod error;
mod fingerprint;
mod folder;
mod gradients;
mod lora;
mod lora_defaults;
mod metrics;
mod nonfinite;
mod objective;
mod optimizer;
mod other_text;
mod pairs;
pub mod plan;
mod preferences;
mod ranks;
mod reduction;
mod report;
mod saved_model;
mod schedule;
mod setup;
mod start_from;
mod step;
mod stepper;
mod task;
mod tokenizer_choice;
mod trainer;
mod training_loop;
mod unstarted;
mod validation_config;

pub use completion_check::check_completions;
pub use config::{
    CheckpointConfig, ParallelConfig, ProbeConfig, RunConfig, SampleConfig, TrainConfig,
};
pub use config_file::{parse_config, parse_stored_config, read_config, to_toml};
pub use conversations::{
    ConversationReport, ConversationSet, Conversations, Examples, LeftOut, PromptCheck, RowReport,
    RowUse,
};
pub use error::TrainError;
pub use folder::RunFolder;
pub use gradients::Gradients;
pub use lora::{LoraSettings, UnsetKeys};
pub use metrics::MetricsLine;
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind};
pub use other_text::OtherTextLoss;
pub use pairs::{PairReport, Pairs};
pub use preferences::{PreferenceLoss, PreferenceMetrics, PreferenceSettings};
pub use ranks::{check_same_program, evaluate_on_ranks};
pub use report::{
    Completion, CompletionReport, CompletionRequest, Hooks, LoraInfo, NoHooks, NullReporter,
    Outcome, Progress, Reporter, RunInfo, SampleRequest, StepReport, StopReason, ValidationReport,
};
pub use schedule::{ScheduleConfig, ScheduleKind};
pub use setup::{
    RunSetup, prepare_conversations, prepare_pairs, prepare_run, prepare_stored_run,
    resolve_model_dir,
};
pub use start_from::LoraBase;
pub use step::forward_backward;
pub use stepper::Stepper;
pub use tokenizer_choice::use_declared_eos;
pub use trainer::{InMemoryTrainer, StopFlag, TrainedModel, Trainer, Worker};
pub use unstarted::is_unstarted;
pub use validation_config::{OtherText, ValidationConfig};
