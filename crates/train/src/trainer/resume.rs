//! Resuming a run, if its data and configuration are unchanged.

use nextword_model::ModelDir;

use super::Trainer;
use crate::checkpoint::{self, DamagedCheckpoint, State};
use crate::fingerprint::{differences, fingerprint, settings, v0_1_fingerprint};
use crate::folder::RunFolder;
use crate::{RunSetup, TrainError};

impl Trainer {
    /// Resumes the run in `folder` from its newest valid checkpoint, or starts it if it has never
    /// saved one.
    ///
    /// # Errors
    /// [`TrainError::Run`] and [`TrainError::Config`] if data or configuration have changed;
    /// [`TrainError::Damaged`] if there are checkpoints but none is valid; the errors of
    /// [`checkpoint::newest`], which leave all checkpoints unchanged.
    pub fn resume(mut setup: RunSetup, folder: RunFolder) -> Result<Self, TrainError> {
        let checkpoints = folder.checkpoints_path();
        checkpoint::remove_temp_folders(&checkpoints)?;
        ModelDir::recover(&folder.best_path())?;
        ModelDir::recover(&folder.last_path())?;
        let (found, damaged) = checkpoint::newest(&checkpoints)?;
        let Some(mut found) = found else {
            let last_path = folder.last_path();
            let has_model = last_path
                .try_exists()
                .map_err(TrainError::io(&last_path, "read"))?;
            if damaged.is_empty() && !has_model {
                return Self::begin(setup, folder);
            }
            return Err(no_valid_checkpoint(&folder, &damaged));
        };
        check_unchanged(&setup, &found.state, &folder)?;
        let path = found.path.display();
        tracing::info!(step = found.state.step, %path, "checkpoint loaded");
        checkpoint::quarantine(&damaged)?;
        let card = ModelDir::open(&found.path)?.card;
        if card.special.source.is_some() {
            // The run no longer knows the model that it started from.
            setup.special = card.special;
        }
        setup.chat_templates = card.chat_templates;
        let config = &setup.config;
        // From here on, a run of version 0.1 is saved in the current form.
        found.state.fingerprint = fingerprint(config);
        found.state.settings = Some(settings(config));
        let model = found.model(&config.model, &setup.device)?;
        let optimizer = found.optimizer(config.optimizer, &setup.device)?;
        let mut trainer = Self::new(setup, folder, model, optimizer, found.state)?;
        trainer.output.skipped = damaged.iter().map(ToString::to_string).collect();
        Ok(trainer)
    }
}

/// The error if there are checkpoints but none is valid: starting over would overwrite the models.
fn no_valid_checkpoint(folder: &RunFolder, damaged: &[DamagedCheckpoint]) -> TrainError {
    let cause = match damaged.first() {
        Some(first) => format!("all checkpoints are damaged ({first})"),
        None => "the checkpoints are missing".to_string(),
    };
    TrainError::Damaged {
        path: folder.path().to_path_buf(),
        problem: format!(
            "{cause}; hint: start a new run from its last model with start_from = \"{}\"",
            folder.last_path().display()
        ),
    }
}

/// Checks that data and configuration match those of the checkpoint.
fn check_unchanged(setup: &RunSetup, state: &State, folder: &RunFolder) -> Result<(), TrainError> {
    let config = &setup.config;
    if state.data != setup.data_fingerprint() {
        let problem = "the data has changed since the run started; hint: restore the old data, or start a \
                       new run with start_from";
        return Err(TrainError::run(folder.path(), problem));
    }
    // Before the settings: a shorter run may also have a shorter warmup.
    if config.train.steps < state.step {
        return Err(TrainError::config(
            "train.steps",
            format!(
                "{} is less than the {} steps already done",
                config.train.steps, state.step
            ),
            "set a larger value, or leave it unchanged",
        ));
    }
    if state.fingerprint != fingerprint(config)
        && Some(&state.fingerprint) != v0_1_fingerprint(config).as_ref()
    {
        let changed = match &state.settings {
            Some(earlier) => {
                let keys = differences(earlier, config).join(", ");
                format!("settings have changed since the run started ({keys})")
            }
            // Version 0.1 stored only the hash.
            None => "the seed, data order, model, optimizer, schedule or batch size has changed since the \
                     run started"
                .to_string(),
        };
        let problem = format!(
            "{changed}; hint: restore the old values; only train.steps, train.log_every, \
             checkpoint, validation, samples and probes may change"
        );
        return Err(TrainError::run(folder.config_path(), problem));
    }
    Ok(())
}
