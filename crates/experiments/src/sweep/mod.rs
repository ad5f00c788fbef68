//! Sweeps: the same training with different settings and seeds.

mod arm;
mod definition;
mod queue;
mod report;
mod run;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nextword_model::{DeviceName, available_memory};
use nextword_train::plan::Plan;
use nextword_train::{
    Hooks, NoHooks, Reporter, RunSetup, StepReport, StopFlag, TrainError, parse_config,
    prepare_run, to_toml,
};
use serde::{Deserialize, Serialize};

pub use arm::{Arm, Variation};
pub use queue::{Launcher, NullObserver, SweepObserver};
pub use report::{ArmReport, LossSummary, Metric, RunReport, SweepReport};
pub(crate) use run::to_json;
pub use run::{RunMeasurement, RunResult, RunSpec, execute_run};

use crate::ExperimentError;
use definition::Definition;
use queue::{Job, run_jobs};

/// Time to measure the speed of an arm, for a budget of minutes.
const MEASUREMENT: Duration = Duration::from_secs(8);

/// The share of the available memory that parallel runs may take.
const MEMORY_SHARE: f64 = 0.8;

/// The length of the runs of a sweep, in place of the configuration's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Updates.
    Steps(u64),
    /// Tokens trained on.
    Tokens(u64),
    /// Minutes of training and validation, from the measured speed of each arm. The number of updates is fixed before
    /// the first run, so that the schedule of the learning rate ends with the run.
    Minutes(f64),
}

/// What to train.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepOptions {
    /// The path of the configuration, for messages.
    pub config_path: PathBuf,
    /// The text of the configuration.
    pub config_text: String,
    /// Changes of the configuration for all arms, as of `--set`.
    pub set: Vec<String>,
    /// What differs between arms.
    pub vary: Vec<Variation>,
    /// Number of seeds; the first is the configuration's.
    pub seeds: u64,
    /// Length of the runs; `None` for the configuration's.
    pub budget: Option<Budget>,
    /// The folder; `None` for that of the configuration's run.
    pub folder: Option<PathBuf>,
    /// Keep models and checkpoints of this number of runs only, those with the lowest losses.
    pub keep_best: Option<usize>,
    /// Maximum number of runs at a time; `None` for as many as cores and memory allow.
    pub parallel: Option<usize>,
}

/// A checked sweep: its arms and their lengths are known.
#[derive(Debug)]
pub struct Sweep {
    options: SweepOptions,
    folder: PathBuf,
    name: String,
    arms: Vec<SweepArm>,
    seeds: Vec<u64>,
}

/// An arm with what is known before its runs.
#[derive(Clone, Debug)]
struct SweepArm {
    arm: Arm,
    /// Updates, if the sweep's budget determines them.
    steps: Option<u64>,
    /// Bytes of memory that a run takes; 0 if all of its runs have ended.
    memory: usize,
    on_gpu: bool,
    has_validation: bool,
}

impl Sweep {
    /// Checks all arms: configurations, data and devices. Creates the sweep's folder, or finds it with the same sweep.
    ///
    /// # Errors
    /// [`ExperimentError::Arm`] for the first arm that cannot be trained, [`ExperimentError::Option`] for options that
    /// exclude each other, [`ExperimentError::Sweep`] if the folder has another sweep.
    pub fn prepare(options: SweepOptions) -> Result<Self, ExperimentError> {
        check_budget(&options)?;
        let base = parse_config(&options.config_text, &options.config_path, &options.set)?;
        let folder = options.folder.clone().unwrap_or_else(|| base.folder());
        if folder.join("run.toml").exists() {
            let problem =
                "this folder has a run, not a sweep; hint: choose another folder with --out";
            return Err(ExperimentError::sweep(&folder, problem));
        }
        let seeds = (0..options.seeds.max(1))
            .map(|n| base.seed.wrapping_add(n))
            .collect();
        let definition = Definition {
            config: to_toml(&base)?,
            budget: options.budget,
            steps: std::collections::BTreeMap::new(),
        };
        let mut definition = definition.continued(&folder)?;
        let mut sweep = Self {
            folder,
            name: base.name,
            arms: Vec::new(),
            seeds,
            options,
        };
        for arm in arm::combinations(&sweep.options.vary)? {
            let name = arm.name();
            let steps = definition.steps.get(&name).copied();
            let arm = sweep
                .check(arm, steps)
                .map_err(|source| ExperimentError::Arm {
                    arm: name.clone(),
                    source: Box::new(source),
                })?;
            definition
                .steps
                .extend(arm.steps.map(|steps| (name, steps)));
            sweep.arms.push(arm);
        }
        definition.write(&sweep.folder)?;
        Ok(sweep)
    }

    /// Builds everything that the runs of `arm` need once, to find errors before the first run.
    fn check(&self, arm: Arm, steps: Option<u64>) -> Result<SweepArm, TrainError> {
        let first = self.seeds.first().copied().unwrap_or_default();
        let config = self.spec(&arm, steps, first).config()?;
        let device: DeviceName = config.device.parse()?;
        let on_cpu = matches!(device.resolve()?, DeviceName::Flex | DeviceName::NdArray);
        let mut checked = SweepArm {
            steps,
            memory: 0,
            on_gpu: !on_cpu,
            has_validation: true,
            arm,
        };
        let results: Option<Vec<RunResult>> = self
            .seeds
            .iter()
            .map(|seed| {
                RunResult::read(&self.run_folder(&checked.arm, *seed))
                    .ok()
                    .flatten()
            })
            .collect();
        if let Some(results) = results {
            checked.has_validation = results.iter().any(|run| run.validation_loss.is_some());
            return Ok(checked);
        }
        let setup = prepare_run(config)?;
        checked.has_validation = has_held_out(&setup);
        let plan = Plan::estimate(&setup);
        checked.memory = plan.memory_bytes.total;
        if steps.is_some() {
            return Ok(checked);
        }
        checked.steps = match self.options.budget {
            None => None,
            Some(Budget::Steps(steps)) => Some(steps),
            Some(Budget::Tokens(tokens)) => Some(
                (tokens as f64 / setup.loader.targets_per_step())
                    .round()
                    .max(1.0) as u64,
            ),
            Some(Budget::Minutes(minutes)) => {
                let steps = setup.config.train.steps;
                let plan = plan.with_speed_within(&setup, MEASUREMENT)?;
                let seconds = plan.measured.map_or(f64::NAN, |speed| {
                    speed.training_seconds + speed.validation_seconds
                });
                Some((60.0 * minutes * steps as f64 / seconds).floor().max(1.0) as u64)
            }
        };
        // A length that does not fit the schedule is found now.
        self.spec(&checked.arm, checked.steps, first).config()?;
        Ok(checked)
    }

    fn run_folder(&self, arm: &Arm, seed: u64) -> PathBuf {
        self.folder
            .join(arm.folder_name())
            .join(format!("seed-{seed}"))
    }

    fn spec(&self, arm: &Arm, steps: Option<u64>, seed: u64) -> RunSpec {
        let mut set = self.options.set.clone();
        set.extend(arm.settings.iter().cloned());
        set.extend(steps.map(|steps| format!("train.steps={steps}")));
        RunSpec {
            config_path: self.options.config_path.clone(),
            config_text: self.options.config_text.clone(),
            set,
            seed,
            name: format!("{}-seed-{seed}", arm.folder_name()),
            folder: self.run_folder(arm, seed),
        }
    }

    /// The sweep's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All runs, arm by arm.
    pub fn runs(&self) -> Vec<RunSpec> {
        self.arms.iter().flat_map(|arm| self.specs(arm)).collect()
    }

    fn specs<'a>(&'a self, arm: &'a SweepArm) -> impl Iterator<Item = RunSpec> + 'a {
        let spec = |seed: &u64| self.spec(&arm.arm, arm.steps, *seed);
        self.seeds.iter().map(spec)
    }

    /// The number of runs at a time, and of threads for each: one run per core, where memory allows it.
    pub fn parallelism(&self) -> (usize, usize) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let waiting = self.arms.iter().filter(|arm| arm.memory > 0);
        let runs = waiting.clone().count() * self.seeds.len();
        let largest = waiting.map(|arm| arm.memory).max().unwrap_or(0).max(1);
        let memory = available_memory().map_or(usize::MAX, |bytes| {
            (bytes as f64 * MEMORY_SHARE) as usize / largest
        });
        let automatic = cores.min(memory);
        let parallel = self.options.parallel.unwrap_or(automatic).min(runs).max(1);
        (parallel, (cores / parallel).max(1))
    }

    /// Trains all runs that have not ended, and returns the report of those that have: of all, unless `stop` was raised or
    /// runs failed. Writes the report to `results.json` in the sweep's folder. Calling it again continues.
    ///
    /// # Errors
    /// If the results cannot be read or written. A run that fails is told to `observer`.
    pub fn run(
        &self,
        launcher: &dyn Launcher,
        observer: &dyn SweepObserver,
        stop: &StopFlag,
    ) -> Result<SweepReport, ExperimentError> {
        let mut jobs = Vec::new();
        for arm in &self.arms {
            for spec in self.specs(arm) {
                if RunResult::read(&spec.folder)?.is_none() {
                    jobs.push(Job {
                        spec,
                        on_gpu: arm.on_gpu,
                    });
                }
            }
        }
        let (parallel, threads) = self.parallelism();
        let failed = run_jobs(jobs, parallel, threads, launcher, observer, stop);
        let report = self.report(failed)?;
        let path = self.folder.join("results.json");
        nextword_base::atomic::write(&path, to_json(&report).as_bytes())
            .map_err(ExperimentError::io(&path, "write"))?;
        if let Some(keep) = self.options.keep_best
            && report.is_complete()
        {
            report.remove_models_beyond(keep)?;
        }
        Ok(report)
    }
}

fn check_budget(options: &SweepOptions) -> Result<(), ExperimentError> {
    let is_length = |key: &str| ["train.steps", "train.epochs"].contains(&key);
    let varied = options.vary.iter().find(|vary| is_length(&vary.key));
    if let (Some(vary), Some(_)) = (varied, options.budget) {
        return Err(ExperimentError::option(
            format!("--vary {}", vary.key),
            "the length of the runs is also given by --steps, --tokens or --minutes",
            "leave one of them out",
        ));
    }
    let is_positive = match options.budget {
        None => true,
        Some(Budget::Steps(n) | Budget::Tokens(n)) => n > 0,
        Some(Budget::Minutes(minutes)) => minutes.is_finite() && minutes > 0.0,
    };
    if is_positive {
        return Ok(());
    }
    let problem = "a run must have a length above 0";
    Err(ExperimentError::option(
        "--steps, --tokens, --minutes",
        problem,
        "use a larger value",
    ))
}

/// Trains the runs in this process, without samples and probes.
///
/// Runs at the same time share the threads of the process, and its peak memory counts for all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Launcher for InProcess {
    fn launch(
        &self,
        spec: &RunSpec,
        _threads: usize,
        stop: &StopFlag,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<RunResult>, ExperimentError> {
        let hooks: &mut dyn Hooks = &mut NoHooks;
        execute_run(spec, &mut ProgressReporter(progress), hooks, stop)
    }
}

/// Passes updates on.
struct ProgressReporter<'a>(&'a mut dyn FnMut(u64, u64));

impl Reporter for ProgressReporter<'_> {
    fn stepped(&mut self, report: &StepReport, _logged: bool) {
        (self.0)(report.step, report.steps);
    }
}

/// Whether a run has a validation loss: of windows, or of held-out pairs of completions.
fn has_held_out(setup: &RunSetup) -> bool {
    let pairs = setup.conversations.as_ref();
    setup.validation.is_some()
        || setup.config.preferences.is_some()
            && pairs.is_some_and(|pairs| !pairs.validation.is_empty())
}

/// What the arms of a sweep are compared by.
fn has_validation(arms: &[SweepArm]) -> bool {
    arms.iter().all(|arm| arm.has_validation)
}
