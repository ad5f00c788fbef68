//! Recording attention and predictions of probe sentences during training.

use std::sync::Arc;

use burn::module::Module;
use nextword_model::write_atomically;
use serde_json::{Value, json};

use super::StopFlag;
use crate::TrainError;
use crate::folder::RunFolder;
use crate::report::{Hooks, Reporter};
use crate::training_loop::TrainingLoop;

/// Whether the run has probe sentences, and this step is one of those at which they are recorded.
fn is_due(training: &TrainingLoop, at_end: bool) -> bool {
    let (config, step) = (&training.setup.config, training.state.step);
    let every = match config.probes.every {
        0 => config.validation.every,
        every => every,
    };
    let is_due = step == 0 || at_end || every > 0 && step.is_multiple_of(every);
    is_due && !config.probes.sentences.is_empty()
}

/// Writes attention and predictions of the probe sentences to the run folder, when due. Only a removed folder and a
/// stop are errors; all others are warnings.
pub(super) fn run(
    training: &TrainingLoop,
    folder: &RunFolder,
    at_end: bool,
    reporter: &mut dyn Reporter,
    hooks: &mut dyn Hooks,
    stop: &StopFlag,
) -> Result<(), TrainError> {
    if !is_due(training, at_end) {
        return Ok(());
    }
    let (setup, state) = (&training.setup, &training.state);
    let config = &setup.config;
    let step = state.step;
    nextword_kernels::release_unused_memory();
    let model = training.stepper.model().valid();
    let tokenizer = Arc::clone(&setup.dataset.tokenizer);
    let mut results: Vec<Value> = Vec::new();
    for sentence in &config.probes.sentences {
        stop.check()?;
        match hooks.probe(&model, &tokenizer, sentence) {
            Ok(result) => results.extend(result),
            Err(TrainError::Interrupted) => return Err(TrainError::Interrupted),
            Err(e) => reporter.warned(&format!("cannot probe the model at step {step}: {e}")),
        }
    }
    if results.is_empty() {
        return Ok(());
    }
    folder.check_exists()?;
    let folder = folder.path().join("probes");
    let file = folder.join(format!("step-{step:08}.json"));
    let step_json = json!({"step": step, "loss": state.loss, "sentences": results});
    let written = std::fs::create_dir_all(&folder)
        .map_err(|e| e.to_string())
        .and_then(|()| {
            write_atomically(&file, step_json.to_string().as_bytes()).map_err(|e| e.to_string())
        });
    if let Err(e) = written {
        reporter.warned(&format!(
            "cannot write the probe results of step {step}: {e}"
        ));
    }
    Ok(())
}
