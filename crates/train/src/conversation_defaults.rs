//! Defaults of runs on conversations, and the number of steps that a number of epochs takes.

use nextword_data::Loader;
use toml::{Table, Value};

use crate::schedule::finetuning_warmup;
use crate::{RunConfig, TrainError};

/// Passes over the data.
const EPOCHS: f64 = 3.0;
/// Conversations per micro-batch.
const BATCH_SIZE: usize = 16;
/// Pairs of completions per micro-batch, each of which is two rows.
const PAIRS: usize = 8;
/// Share of the conversations for validation.
const VALIDATION_SHARE: f64 = 0.05;
/// Updates between two validations: finetuning takes few of them.
const VALIDATION_EVERY: u64 = 50;

/// Whether `config` has `section.key`.
fn is_set(config: &Table, section: &str, key: &str) -> bool {
    let section = config.get(section).and_then(Value::as_table);
    section.is_some_and(|section| section.contains_key(key))
}

/// Rejects a file with both numbers of steps and of epochs.
pub(crate) fn check_length_keys(table: &Table) -> Result<(), TrainError> {
    if is_set(table, "train", "steps") && is_set(table, "train", "epochs") {
        return Err(TrainError::config(
            "train.epochs",
            "is set beside train.steps, and both say how long the run is",
            "remove one of them",
        ));
    }
    Ok(())
}

/// Fills in what `table` leaves out and what conversations need other defaults for than text does: 3 epochs in batches
/// of 16 (with `[preferences]` of 8 pairs), a twentieth for validation, and a validation every 50 steps.
pub(crate) fn apply(config: &mut RunConfig, table: &Table) {
    if config.data.has_conversations() {
        if !is_set(table, "train", "steps") && !is_set(table, "train", "epochs") {
            config.train.epochs = Some(EPOCHS);
        }
        if !is_set(table, "train", "batch_size") {
            config.train.batch_size = match config.preferences {
                Some(_) => PAIRS,
                None => BATCH_SIZE,
            };
        }
        if !is_set(table, "validation", "every") {
            config.validation.every = VALIDATION_EVERY;
        }
        let data = table.get("data").and_then(Value::as_table);
        if !data.is_some_and(|data| is_set(data, "split", "validation")) {
            config.data.split.validation = VALIDATION_SHARE;
        }
    }
}

/// Replaces the number of epochs by the steps that they take, so that the stored configuration has those, and a warmup
/// that is left out by the default for these steps.
///
/// # Errors
/// [`TrainError::Config`] if the warmup does not fit into the steps.
pub(crate) fn resolve_epochs(config: &mut RunConfig, loader: &Loader) -> Result<(), TrainError> {
    let Some(epochs) = config.train.epochs.take() else {
        return Ok(());
    };
    let sequences = epochs * loader.sequences_per_epoch() as f64;
    let steps = (sequences / loader.sequences_per_step() as f64).ceil();
    config.train.steps = (steps as u64).max(1);
    if config.unset.warmup_steps {
        config.schedule.warmup_steps = finetuning_warmup(config.train.steps);
    }
    config.validate_schedule()
}
