//! Resuming a run, if its data and configuration are unchanged.

use nextword_convert::describe_base;
use nextword_model::{AdapterDir, ModelDir};

use super::Trainer;
use crate::checkpoint::{self, DamagedCheckpoint, State};
use crate::fingerprint::{differences, fingerprint, settings, v0_1_fingerprint};
use crate::folder::RunFolder;
use crate::ranks::Start;
use crate::{RunConfig, RunSetup, TrainError};

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
                let message =
                    "no checkpoint was saved before, so the run starts from its first step";
                setup.config.warnings.push(message.to_string());
                return Self::begin(setup, folder);
            }
            return Err(no_valid_checkpoint(&folder, &damaged));
        };
        check_unchanged(&setup, &found.state, &folder)?;
        let path = found.path.display();
        tracing::info!(step = found.state.step, %path, "checkpoint loaded");
        checkpoint::quarantine(&damaged)?;
        let stored = folder.read_config()?;
        let warning = learning_rate_warning(&stored, &setup.config, found.state.step);
        setup.config.warnings.extend(warning);
        let card = found.card()?;
        card.check_templates()?;
        if card.special.source.is_some() {
            // The run no longer knows the model that it started from.
            setup.special = card.special;
        }
        setup.chat_templates = card.chat_templates;
        setup.trained_on = Some(card.trained_on).filter(|described| !described.is_empty());
        let config = &setup.config;
        let is_current = found.state.fingerprint == fingerprint(config)
            && found.state.settings.as_ref() == Some(&settings(config))
            && has_last_model(&folder, config, found.state.step);
        // From here on, a run of version 0.1 is saved in the current form.
        found.state.fingerprint = fingerprint(config);
        found.state.settings = Some(settings(config));
        let model = match &setup.lora {
            Some(base) => {
                let adapter = found.adapter()?.load(&config.model)?;
                base.with_adapter(adapter, config, &setup.device)?
            }
            None => found.model(&config.model, &setup.device)?,
        };
        let (optimizer, moments) = if setup.shards_optimizer() {
            // All moments at once may not fit into the memory of rank 0.
            (config.new_optimizer(), Some(found.moments()?))
        } else {
            let optimizer = found.optimizer(config.optimizer, &setup.device)?;
            (config.with_plus_ratio(optimizer), None)
        };
        let start = Start {
            model,
            optimizer,
            moments,
            state: found.state,
        };
        let mut trainer = Self::new(setup, folder, start)?;
        trainer.output.skipped = damaged.iter().map(ToString::to_string).collect();
        let step = trainer.training.state.step;
        trainer.output.checkpoint = Some(step);
        let is_complete = trainer.training.state.unfinished.is_none();
        trainer.output.saved_at = (is_current && is_complete && damaged.is_empty()).then_some(step);
        if trainer.has_source() {
            // The process that started the run ended right after its first checkpoint.
            trainer.detach_from_source()?;
        }
        Ok(trainer)
    }
}

/// Whether the last model of the run is that of the checkpoint of `step`, with the prompt template of `config`.
fn has_last_model(folder: &RunFolder, config: &RunConfig, step: u64) -> bool {
    let path = folder.last_path();
    let last = if config.lora.is_some() {
        AdapterDir::open(&path).map(|last| (last.tensors_path(), last.card))
    } else {
        ModelDir::open(&path).map(|last| (last.weights_path(), last.card))
    };
    last.is_ok_and(|(weights, card)| {
        card.step == step
            && card.prompt_template == config.samples.prompt_template
            && weights.is_file()
    })
}

/// Says that the learning rate jumps after `step` updates, because the number of steps changes from that of
/// `stored` to that of `config`, and most schedules end at the last step.
fn learning_rate_warning(stored: &RunConfig, config: &RunConfig, step: u64) -> Option<String> {
    let (before, after) = (stored.train.steps, config.train.steps);
    if before == after || step >= after || step == 0 {
        return None;
    }
    let planned = stored.schedule.learning_rate(step, before);
    let next = config.schedule.learning_rate(step, after);
    if (next - planned).abs() <= MAX_RATE_CHANGE * next.max(planned) {
        return None;
    }
    let last = stored.schedule.learning_rate(step - 1, before);
    Some(format!(
        "with train.steps = {after} instead of {before}, the learning rate changes from {last:.3e} at step {step} to \
         {next:.3e} at step {}",
        step + 1
    ))
}

/// Relative change of the learning rate above which a resumed run warns.
const MAX_RATE_CHANGE: f64 = 0.01;

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
    if let (Some(expected), Some(base)) = (&state.base, &setup.lora)
        && !base.is(expected)
    {
        let [expected, found] = [expected, &base.description].map(describe_base);
        let problem = format!(
            "this run adapts {expected}, but the model in start_from is {found}; hint: name the right one with --set \
             start_from=FOLDER"
        );
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ScheduleKind;

    fn config(kind: ScheduleKind, steps: u64) -> RunConfig {
        let mut config = RunConfig::default();
        config.schedule.kind = kind;
        config.schedule.warmup_steps = 10;
        config.train.steps = steps;
        config
    }

    #[test]
    fn a_jump_of_the_learning_rate_is_described_with_both_rates() {
        let warning = |kind, from, to, step| {
            learning_rate_warning(&config(kind, from), &config(kind, to), step)
        };
        let message = warning(ScheduleKind::Cosine, 100, 200, 100).unwrap();
        let shown_rate = |step, steps| {
            let config = config(ScheduleKind::Cosine, steps);
            format!("{:.3e}", config.schedule.learning_rate(step, steps))
        };
        for part in [
            &shown_rate(99, 100),
            &shown_rate(100, 200),
            "200 instead of 100",
            "step 101",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
        for (kind, from, to, step, is_said) in [
            (ScheduleKind::Cosine, 100, 200, 50, true),
            (ScheduleKind::Cosine, 100, 100, 50, false),
            (ScheduleKind::Cosine, 200, 100, 100, false), // Nothing is left to do.
            (ScheduleKind::Cosine, 100, 200, 0, false),
            (ScheduleKind::Cosine, 100, 200, 5, false), // Within the warmup.
            (ScheduleKind::Linear, 100, 101, 50, false), // Less than a hundredth.
            (ScheduleKind::Linear, 100, 1000, 100, true),
            (ScheduleKind::Wsd, 100, 200, 100, true),
            (ScheduleKind::Wsd, 100, 200, 60, false), // Still at the maximum.
            (ScheduleKind::Constant, 100, 200, 100, false),
        ] {
            let found = warning(kind, from, to, step);
            assert_eq!(
                found.is_some(),
                is_said,
                "{kind:?} {from} {to} {step}: {found:?}"
            );
        }
        let with_end = |steps| {
            let mut config = config(ScheduleKind::Cosine, steps);
            config.schedule.end_step = Some(100);
            config
        };
        assert_eq!(
            learning_rate_warning(&with_end(100), &with_end(300), 100),
            None
        );
    }
}
