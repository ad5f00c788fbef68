//! One run of a sweep: an ordinary run folder, and the result beside its files.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nextword_model::peak_memory;
use nextword_train::{
    Hooks, MetricsLine, Reporter, RunConfig, RunFolder, RunSetup, StopFlag, StopReason, TrainError,
    Trainer, parse_config, prepare_run, prepare_stored_run,
};
use serde::{Deserialize, Serialize};

use crate::{ExperimentError, read_metrics};

/// The file in a run folder that says that the run has ended, and how.
const RESULT: &str = "result.json";

/// Time to wait for a process of a killed sweep that still saves its run.
const LOCK_TIMEOUT: Duration = Duration::from_mins(1);
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Everything that determines a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The path of the sweep's configuration, for messages.
    pub config_path: PathBuf,
    /// The text of the configuration.
    pub config_text: String,
    /// Assignments as of `--set`, in order.
    pub set: Vec<String>,
    /// The seed.
    pub seed: u64,
    /// The name of the run.
    pub name: String,
    /// The run's folder.
    pub folder: PathBuf,
}

impl RunSpec {
    /// The configuration of the run.
    ///
    /// # Errors
    /// The errors of [`parse_config`].
    pub fn config(&self) -> Result<RunConfig, TrainError> {
        let mut config = parse_config(&self.config_text, &self.config_path, &self.set)?;
        config.seed = self.seed;
        config.name.clone_from(&self.name);
        config.out = Some(self.folder.clone());
        Ok(config)
    }
}

/// How a run ended. What was measured depends on the machine; everything else only on the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Updates made.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Number of parameters of the model, without those of an adapter.
    pub parameters: usize,
    /// Number of parameters that a run with `[lora]` trains; `None` for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_parameters: Option<usize>,
    /// The last training loss in the run's metrics, nats per token.
    pub train_loss: Option<f64>,
    /// The last validation loss, nats per token.
    pub validation_loss: Option<f64>,
    /// The lowest validation loss.
    pub best_validation_loss: Option<f64>,
    /// Why the training diverged, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diverged: Option<String>,
    /// Speed, time and memory.
    pub measured: RunMeasurement,
}

/// Speed, time and memory of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunMeasurement {
    /// The median over the run, tokens per second of training.
    pub tokens_per_second: Option<f64>,
    /// Seconds of training, validation and saving, those before an interruption included.
    pub seconds: f64,
    /// Peak resident memory of the process that ended the run, in bytes.
    pub peak_memory: Option<u64>,
}

impl RunResult {
    /// Reads the result of the run in `folder`; `None` if the run has not ended.
    ///
    /// # Errors
    /// If the file exists and cannot be read or parsed.
    pub fn read(folder: &Path) -> Result<Option<Self>, ExperimentError> {
        let path = folder.join(RESULT);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ExperimentError::io(&path, "read")(error)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            let problem = format!("not the result of a run: {error}");
            ExperimentError::sweep(
                &path,
                format!("{problem}; hint: remove the file to resume the run"),
            )
        })
    }

    fn write(&self, folder: &Path) -> Result<(), ExperimentError> {
        let path = folder.join(RESULT);
        let text = to_json(self);
        nextword_base::atomic::write(&path, text.as_bytes())
            .map_err(ExperimentError::io(&path, "write"))
    }

    /// Collects the result from the metrics, which are the same for a resumed run.
    fn collect(counts: &RunParameters, folder: &Path) -> Result<Self, ExperimentError> {
        let lines = read_metrics(&folder.join("metrics.jsonl"))?;
        let last = |value: fn(&MetricsLine) -> Option<f64>| lines.iter().rev().find_map(value);
        let losses = lines.iter().filter_map(|line| line.val_loss);
        let speeds = lines.iter().filter_map(|line| line.tokens_per_second);
        let newest = lines.last();
        Ok(Self {
            step: newest.map_or(0, |line| line.step),
            tokens: newest.map_or(0, |line| line.tokens),
            parameters: counts.parameters,
            trained_parameters: counts.trained_parameters,
            train_loss: last(|line| line.loss),
            validation_loss: last(|line| line.val_loss),
            best_validation_loss: losses.reduce(f64::min),
            diverged: None,
            measured: RunMeasurement {
                tokens_per_second: median(speeds.collect()),
                seconds: newest.map_or(0.0, |line| line.elapsed),
                peak_memory: peak_memory(),
            },
        })
    }
}

/// `value` as indented JSON with a line break at the end.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    // Maps with string keys and plain numbers can always be serialized.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(values[middle - 1], upper))
}

/// Starts the run of `spec`, or resumes it if its folder has one, and trains it to its end. Returns `None` if `stop` was
/// raised before that. A run whose result is in its folder is not repeated; one that diverges has a result too, since it
/// would diverge again.
///
/// # Errors
/// [`ExperimentError::Train`] if the run cannot be started or resumed, or if its files cannot be written.
pub fn execute_run(
    spec: &RunSpec,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
    stop: &StopFlag,
) -> Result<Option<RunResult>, ExperimentError> {
    let (parameters, trainer) = match open_or_begin(spec)? {
        Opened::Ended(result) => return Ok(Some(result)),
        Opened::Ready(opened) => *opened,
    };
    let outcome = trainer.run(reporter, hooks, stop);
    let result = match outcome {
        Ok(outcome) if outcome.reason == StopReason::Interrupted => return Ok(None),
        Ok(_) => RunResult::collect(&parameters, &spec.folder)?,
        Err(error @ TrainError::Diverged { .. }) => RunResult {
            diverged: Some(error.to_string()),
            ..RunResult::collect(&parameters, &spec.folder)?
        },
        Err(error) => return Err(error.into()),
    };
    result.write(&spec.folder)?;
    Ok(Some(result))
}

/// A run that is about to be trained, or has ended.
enum Opened {
    Ended(RunResult),
    Ready(Box<(RunParameters, Trainer)>),
}

/// What is known of a run besides its metrics.
struct RunParameters {
    parameters: usize,
    trained_parameters: Option<usize>,
}

impl RunParameters {
    fn of(setup: &RunSetup) -> Self {
        Self {
            parameters: setup.config.model.parameter_counts().total(),
            trained_parameters: setup.lora.as_ref().map(|base| base.trained_parameters),
        }
    }
}

/// Starts or resumes the run of `spec`. A process that lost its sweep saves its run and ends within seconds; until then the
/// folder is in use, and what is in it changes.
fn open_or_begin(spec: &RunSpec) -> Result<Opened, ExperimentError> {
    let start = Instant::now();
    loop {
        if let Some(result) = RunResult::read(&spec.folder)? {
            return Ok(Opened::Ended(result));
        }
        let has_run = || spec.folder.join("run.toml").exists();
        let existed = has_run();
        let opened = if existed {
            resume(&spec.folder)
        } else {
            begin(spec)
        };
        match opened {
            Ok(ready) => return Ok(Opened::Ready(Box::new(ready))),
            Err(error) => {
                let is_in_use = matches!(error, TrainError::FolderInUse { .. });
                let has_appeared = !existed && has_run();
                if !(is_in_use || has_appeared) || start.elapsed() > LOCK_TIMEOUT {
                    return Err(error.into());
                }
            }
        }
        thread::sleep(LOCK_POLL);
    }
}

fn begin(spec: &RunSpec) -> Result<(RunParameters, Trainer), TrainError> {
    let setup = prepare_run(spec.config()?)?;
    let folder = RunFolder::create(&spec.folder, &setup.config)?;
    let config_path = folder.config_path();
    let parameters = RunParameters::of(&setup);
    // A run that failed to start has nothing to resume.
    let trainer =
        Trainer::begin(setup, folder).inspect_err(|_| drop(std::fs::remove_file(&config_path)))?;
    Ok((parameters, trainer))
}

fn resume(path: &Path) -> Result<(RunParameters, Trainer), TrainError> {
    let (folder, mut config) = RunFolder::open(path)?;
    folder.locate_base(&mut config)?;
    let setup = prepare_stored_run(config)?;
    Ok((RunParameters::of(&setup), Trainer::resume(setup, folder)?))
}
