//! The models of a comparison, and the tokens that they are compared on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nextword_data::{EvalWindows, Tokenizer};
use nextword_experiments::{RunMeasurement, RunResult, read_metrics};
use nextword_generate::TextGenerator;
use nextword_model::Transformer;
use nextword_train::{RunConfig, RunFolder, prepare_stored_run};

use super::CompareArgs;
use crate::{exit, models};

/// A model with the run that it belongs to.
pub(super) struct ComparedModel {
    pub(super) model: Transformer,
    pub(super) tokenizer: Arc<dyn Tokenizer>,
    pub(super) weights_bytes: u64,
    /// The configuration of its run.
    pub(super) run: Option<RunConfig>,
    /// Speed and memory of its training.
    pub(super) training: Option<RunMeasurement>,
}

impl ComparedModel {
    pub(super) fn open(path: &Path, args: &CompareArgs, device: &str) -> anyhow::Result<Self> {
        let dir = args.mapping.apply(models::open(path, args.last)?);
        let generator = TextGenerator::open(&dir, &models::open_and_name_device(device)?)?;
        let run_folder = run_of(path);
        let run = run_folder.as_deref().map(RunFolder::stored_config);
        let file = if dir.tokenizer_json().is_some() {
            dir.path.clone()
        } else {
            dir.weights_path()
        };
        Ok(Self {
            model: generator.model().clone(),
            tokenizer: Arc::clone(generator.tokenizer()),
            weights_bytes: std::fs::metadata(file).map_or(0, |file| file.len()),
            run: run.transpose()?,
            training: run_folder.as_deref().and_then(measurement),
        })
    }

    pub(super) fn context_length(&self) -> usize {
        self.model.config().context_length
    }

    pub(super) fn parameters(&self) -> usize {
        self.model.config().parameter_counts().total()
    }
}

/// The run folder of a model: `path` itself, or the folder that it is in.
fn run_of(path: &Path) -> Option<PathBuf> {
    let folders = path.ancestors().take(3);
    folders
        .filter(|folder| !folder.as_os_str().is_empty())
        .find(|folder| models::is_run(folder))
        .map(Path::to_path_buf)
}

/// Speed and memory of a run: from a sweep's result, or from its metrics.
fn measurement(run: &Path) -> Option<RunMeasurement> {
    if let Ok(Some(result)) = RunResult::read(run) {
        return Some(result.measured);
    }
    let lines = read_metrics(&run.join("metrics.jsonl")).ok()?;
    let newest = lines
        .iter()
        .rev()
        .find(|line| line.tokens_per_second.is_some());
    Some(RunMeasurement {
        tokens_per_second: newest.and_then(|line| line.tokens_per_second),
        seconds: lines.last()?.elapsed,
        // The largest that was logged: the peak between two lines is not known.
        peak_memory: lines.iter().filter_map(|line| line.memory).max(),
    })
}

/// The validation windows of the run `data`, or of the first side that belongs to a run. Rows have at most `length`
/// tokens.
pub(super) fn validation_windows(
    data: Option<&Path>,
    sides: [&ComparedModel; 2],
    length: usize,
    windows: Option<usize>,
) -> anyhow::Result<EvalWindows> {
    let mut config = match data {
        Some(run) => RunFolder::stored_config(run)?,
        None => sides
            .iter()
            .find_map(|side| side.run.clone())
            .ok_or_else(|| {
                exit::usage(
                    "neither model belongs to a run, so there is no validation data; hint: name a run with --data RUN",
                )
            })?,
    };
    if config.preferences.is_some() {
        return Err(exit::usage(
            "this run learned from preferences, which are not compared token by token; hint: name a run on text or on \
             conversations with --data",
        ));
    }
    let tokens = config.sequence_length().min(length);
    config.train.sequence_length = Some(tokens);
    // The model is not trained: any device will do.
    config.device = nextword::default_device().to_string();
    if let Some(windows) = windows {
        config.validation.windows = windows;
    }
    let setup = prepare_stored_run(config)?;
    if setup.tokenizer().hash() != sides[0].tokenizer.hash() {
        return Err(exit::usage(
            "the validation data was tokenized by another tokenizer than that of the models; hint: name another run with \
             --data",
        ));
    }
    setup.validation.ok_or_else(|| {
        exit::usage("this run has no validation data; hint: name another run with --data")
    })
}
