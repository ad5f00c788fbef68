//! The result of a sweep: losses of the arms and their paired differences.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::run::{RunMeasurement, RunResult};
use super::{Sweep, SweepArm, has_validation};
use crate::statistics::{Interval, mean, mean_interval, standard_deviation};
use crate::{ExperimentError, read_metrics};

/// The loss that arms are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The validation loss after the last update.
    ValidationLoss,
    /// The training loss of the last update, for data without a validation split.
    TrainingLoss,
}

/// The result of a sweep. Only what is in `measured` differs when the sweep is repeated on the same kind of device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The name of the configuration.
    pub name: String,
    /// What `loss` and `difference` are about.
    pub metric: Metric,
    /// The seeds of each arm, in order.
    pub seeds: Vec<u64>,
    /// The arms, in the order of the variations.
    pub arms: Vec<ArmReport>,
    /// Number of runs that could not be trained in this call; another call tries them again.
    #[serde(skip)]
    pub failed: usize,
}

/// The result of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// The arm's name: its settings.
    pub name: String,
    /// The settings by key, as text.
    pub settings: BTreeMap<String, String>,
    /// Number of parameters; `None` before the first run has ended.
    pub parameters: Option<usize>,
    /// Those that runs with `[lora]` train; `None` for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_parameters: Option<usize>,
    /// The losses of the runs that have ended and did not diverge; `None` without any.
    pub loss: Option<LossSummary>,
    /// The loss minus that of the first arm with the same seed: the mean over seeds, with Student's 95 % interval; `None`
    /// for the first arm and for fewer than two seeds.
    pub difference: Option<Interval>,
    /// The mean of that difference, which one seed has too.
    pub mean_difference: Option<f64>,
    /// The runs, in the order of the seeds.
    pub runs: Vec<RunReport>,
    /// Means over the runs that have ended.
    pub measured: RunMeasurement,
}

/// Losses over seeds, nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossSummary {
    /// The mean.
    pub mean: f64,
    /// The standard deviation over seeds; `None` for one seed.
    pub standard_deviation: Option<f64>,
    /// Number of runs.
    pub runs: usize,
}

/// A run of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The seed.
    pub seed: u64,
    /// The run's folder, relative to that of the sweep.
    pub folder: PathBuf,
    /// How it ended; `None` if it has not.
    pub result: Option<RunResult>,
    #[serde(skip)]
    pub(super) path: PathBuf,
}

impl RunReport {
    /// The loss that arms are compared by; `None` if the run has not ended, or diverged.
    pub(super) fn loss(&self, metric: Metric) -> Option<f64> {
        let result = self.result.as_ref().filter(|run| run.diverged.is_none())?;
        match metric {
            Metric::ValidationLoss => result.validation_loss,
            Metric::TrainingLoss => result.train_loss,
        }
    }
}

impl Sweep {
    /// Reads the results of all runs that have ended.
    pub(super) fn report(&self, failed: usize) -> Result<SweepReport, ExperimentError> {
        let metric = if has_validation(&self.arms) {
            Metric::ValidationLoss
        } else {
            Metric::TrainingLoss
        };
        let mut arms: Vec<ArmReport> = Vec::new();
        for arm in &self.arms {
            let runs = self.read_runs(arm)?;
            let first = arms.first().map(|arm| arm.runs.as_slice());
            arms.push(ArmReport::new(arm, runs, first, metric));
        }
        Ok(SweepReport {
            name: self.name.clone(),
            metric,
            seeds: self.seeds.clone(),
            arms,
            failed,
        })
    }

    fn read_runs(&self, arm: &SweepArm) -> Result<Vec<RunReport>, ExperimentError> {
        let read = |seed: &u64| {
            let path = self.run_folder(&arm.arm, *seed);
            let folder = path.strip_prefix(&self.folder).unwrap_or(&path);
            Ok(RunReport {
                seed: *seed,
                folder: folder.to_path_buf(),
                result: RunResult::read(&path)?,
                path,
            })
        };
        self.seeds.iter().map(read).collect()
    }
}

impl ArmReport {
    fn new(
        arm: &SweepArm,
        runs: Vec<RunReport>,
        first: Option<&[RunReport]>,
        metric: Metric,
    ) -> Self {
        let losses: Vec<f64> = runs.iter().filter_map(|run| run.loss(metric)).collect();
        let pairs = first.unwrap_or_default().iter().zip(&runs);
        let differences: Vec<f64> = pairs
            .filter_map(|(first, run)| Some(run.loss(metric)? - first.loss(metric)?))
            .collect();
        let results: Vec<&RunResult> = runs.iter().filter_map(|run| run.result.as_ref()).collect();
        let settings = arm.arm.settings.iter();
        Self {
            name: arm.arm.name(),
            settings: settings
                .filter_map(|setting| setting.split_once('='))
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            parameters: results.first().map(|run| run.parameters),
            trained_parameters: results.first().and_then(|run| run.trained_parameters),
            loss: mean(&losses).map(|mean| LossSummary {
                mean,
                standard_deviation: standard_deviation(&losses),
                runs: losses.len(),
            }),
            difference: mean_interval(&differences),
            mean_difference: mean(&differences),
            measured: mean_measurement(&results),
            runs,
        }
    }

    /// The mean of the losses of all its runs that have ended, by step: of those steps that all of them measured.
    ///
    /// # Errors
    /// If the metrics of a run cannot be read.
    pub fn mean_curve(&self, metric: Metric) -> Result<Vec<(u64, f64)>, ExperimentError> {
        let ended: Vec<&RunReport> = self
            .runs
            .iter()
            .filter(|run| run.result.is_some())
            .collect();
        let mut steps: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for run in &ended {
            for line in read_metrics(&run.path.join("metrics.jsonl"))? {
                let loss = match metric {
                    Metric::ValidationLoss => line.val_loss,
                    Metric::TrainingLoss => line.loss,
                };
                steps.entry(line.step).or_default().extend(loss);
            }
        }
        let complete = steps
            .iter()
            .filter(|(_, losses)| losses.len() == ended.len());
        Ok(complete
            .filter_map(|(step, losses)| Some((*step, mean(losses)?)))
            .collect())
    }
}

/// The means of what was measured; memory is the largest.
fn mean_measurement(results: &[&RunResult]) -> RunMeasurement {
    let measured = || results.iter().map(|run| run.measured);
    let speeds: Vec<f64> = measured().filter_map(|run| run.tokens_per_second).collect();
    let seconds: Vec<f64> = measured().map(|run| run.seconds).collect();
    RunMeasurement {
        tokens_per_second: mean(&speeds),
        seconds: mean(&seconds).unwrap_or_default(),
        peak_memory: measured().filter_map(|run| run.peak_memory).max(),
    }
}

impl SweepReport {
    /// Whether all runs have ended.
    pub fn is_complete(&self) -> bool {
        let mut runs = self.arms.iter().flat_map(|arm| &arm.runs);
        runs.all(|run| run.result.is_some())
    }

    /// Removes models and checkpoints of all runs except the `keep` with the lowest losses. Configurations, metrics,
    /// samples and results of all runs stay.
    pub(super) fn remove_models_beyond(&self, keep: usize) -> Result<(), ExperimentError> {
        let mut runs: Vec<&RunReport> = self.arms.iter().flat_map(|arm| &arm.runs).collect();
        let loss = |run: &RunReport| run.loss(self.metric).unwrap_or(f64::INFINITY);
        runs.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        for run in runs.iter().skip(keep) {
            for part in ["checkpoints", "best", "last"] {
                remove_folder(&run.path.join(part))?;
            }
        }
        Ok(())
    }
}

fn remove_folder(path: &Path) -> Result<(), ExperimentError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ExperimentError::io(path, "remove")(error))
        }
        _ => Ok(()),
    }
}
