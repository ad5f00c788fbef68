//! Going on with a run, if it is still what it was.

use nextword_model::Record;

use super::Trainer;
use crate::checkpoint::{self, Skipped, State};
use crate::fingerprint::{differences, fingerprint, fingerprint_of_0_1, settings};
use crate::folder::RunFolder;
use crate::{Ingredients, TrainError};

impl Trainer {
    /// Continues the run in `folder` from its newest sound checkpoint, or from the beginning if
    /// there has never been one.
    ///
    /// # Errors
    /// [`TrainError::Run`] and [`TrainError::Config`] if data or configuration are not what they
    /// were; [`TrainError::Damaged`] if there were checkpoints and none can be used.
    pub fn resume(ingredients: Ingredients, folder: RunFolder) -> Result<Self, TrainError> {
        let checkpoints = folder.checkpoints_path();
        checkpoint::remove_leftovers(&checkpoints)?;
        Record::recover(&folder.best_path())?;
        Record::recover(&folder.last_path())?;
        let (found, skipped) = checkpoint::newest(&checkpoints)?;
        let Some(mut found) = found else {
            if skipped.is_empty() && !folder.last_path().exists() {
                return Self::begin(ingredients, folder);
            }
            return Err(no_checkpoint(&folder, &skipped));
        };
        check_same(&ingredients, &found.state, &folder)?;
        checkpoint::set_aside(&skipped)?;
        let config = &ingredients.config;
        // A checkpoint of version 0.1 gets the present form with its next save.
        found.state.identity = fingerprint(config);
        found.state.settings = Some(settings(config));
        let model = found.model(&config.model, &ingredients.device)?;
        let optimizer = found.optimizer(config.optimizer, &ingredients.device)?;
        let mut trainer = Self::new(ingredients, folder, model, optimizer, found.state)?;
        trainer.skipped = skipped.iter().map(ToString::to_string).collect();
        Ok(trainer)
    }
}

/// There were checkpoints, and none can be used: beginning anew would overwrite what was learned.
fn no_checkpoint(folder: &RunFolder, skipped: &[Skipped]) -> TrainError {
    let what = match skipped.first() {
        Some(first) => format!("no checkpoint is sound ({first})"),
        None => "its checkpoints are gone".to_string(),
    };
    TrainError::Damaged {
        path: folder.path().to_path_buf(),
        problem: format!(
            "{what}; hint: go on from its record with start_from = \"{}\" in a new run",
            folder.last_path().display()
        ),
    }
}

/// Whether the run would go on as what it was.
fn check_same(
    ingredients: &Ingredients,
    state: &State,
    folder: &RunFolder,
) -> Result<(), TrainError> {
    let config = &ingredients.config;
    if state.data != ingredients.data_fingerprint() {
        let problem = "the data has changed since the run began; hint: put the old data back, or \
                       begin a new run with start_from";
        return Err(TrainError::run(folder.path(), problem));
    }
    if state.identity != fingerprint(config)
        && Some(&state.identity) != fingerprint_of_0_1(config).as_ref()
    {
        let changed = match &state.settings {
            Some(earlier) => {
                format!(
                    "settings have changed ({})",
                    differences(earlier, config).join(", ")
                )
            }
            // Version 0.1 stored the hash alone.
            None => {
                "seed, data order, model, optimizer, schedule or batch have changed".to_string()
            }
        };
        let problem = format!(
            "{changed} since the run began; hint: put them back; train.steps, checkpoint, validation and \
             samples may change"
        );
        return Err(TrainError::run(folder.config_path(), problem));
    }
    if config.train.steps < state.step {
        return Err(TrainError::config(
            "train.steps",
            format!(
                "{} are fewer than the {} that were made",
                config.train.steps, state.step
            ),
            "set more, or leave it as it is",
        ));
    }
    Ok(())
}
