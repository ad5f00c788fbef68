//! Training decoder-only Transformers: the loop and what it is made of.
//!
//! | to change | open |
//! |---|---|
//! | what a run can be told | [`RunConfig`] |
//! | forward, backward, accumulation, clipping | [`Gradients`], [`forward_backward`], [`Stepper`] |
//! | how gradients change weights | [`Optimizer`] |
//! | the learning rate | [`ScheduleConfig`] |
//! | what is saved and how it is found again | [`checkpoint`] |
//! | the order of things in a run | [`Trainer`] |
//!
//! Nothing here writes to a terminal: a run tells what happens through [`Reporter`].

#![recursion_limit = "256"]

pub mod checkpoint;
mod config;
mod config_file;
mod error;
mod fingerprint;
mod folder;
mod metrics;
mod nonfinite;
mod optimizer;
mod report;
mod schedule;
mod setup;
mod step;
mod stepper;
mod trainer;

pub use config::{
    CheckpointConfig, ProbeConfig, RunConfig, SampleConfig, TrainConfig, ValidationConfig,
};
pub use config_file::{parse_config, read_config, to_toml};
pub use error::TrainError;
pub use folder::RunFolder;
pub use metrics::MetricsLine;
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind};
pub use report::{
    Hooks, Outcome, Reporter, RunInfo, Silent, StepReport, StopReason, ValidationReport,
};
pub use schedule::{ScheduleConfig, ScheduleKind};
pub use setup::{Ingredients, prepare_run};
pub use step::{Gradients, forward_backward};
pub use stepper::Stepper;
pub use trainer::{StopFlag, Trainer};
