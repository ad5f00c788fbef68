//! Experiments with training runs.
//!
//! | to | use |
//! |---|---|
//! | train every combination of settings with several seeds | [`Sweep`] |
//! | compare two models token by token, or two devices | [`compare`] |
//! | check training data, or a device | [`doctor`] |
//! | choose the size of a model for a given time | [`scaling`] |
//! | intervals over seeds and over blocks of tokens | [`statistics`] |
//! | read the metrics of a run, and write them for other tools | [`read_metrics`], [`export`] |
//!
//! This crate does not write to the terminal: a sweep reports its progress through [`SweepObserver`].
//!
//! ```
//! use nextword_experiments::{Budget, InProcess, NullObserver, Sweep, SweepOptions};
//! use nextword_train::StopFlag;
//!
//! let folder = tempfile::tempdir()?;
//! let sweep = Sweep::prepare(SweepOptions {
//!     config_path: "statquest.toml".into(),
//!     config_text: std::fs::read_to_string("../../configs/statquest.toml")?,
//!     set: vec![],
//!     vary: vec!["schedule.learning_rate=0.01,0.1".parse()?],
//!     seeds: 2,
//!     budget: Some(Budget::Steps(20)),
//!     folder: Some(folder.path().to_path_buf()),
//!     keep_best: None,
//!     parallel: None,
//! })?;
//! let report = sweep.run(&InProcess, &NullObserver, &StopFlag::default())?;
//! assert!(report.is_complete());
//! // The larger learning rate trains faster: the paired difference to the first arm.
//! assert!(report.arms[1].mean_difference.unwrap() < 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

pub mod compare;
pub mod doctor;
mod error;
pub mod export;
mod metrics;
pub mod scaling;
pub mod statistics;
mod sweep;

pub use error::ExperimentError;
pub use metrics::read_metrics;
pub use sweep::{
    Arm, ArmReport, Budget, InProcess, Launcher, LossSummary, Metric, NullObserver, RunMeasurement,
    RunReport, RunResult, RunSpec, Sweep, SweepObserver, SweepOptions, SweepReport, Variation,
    execute_run,
};
