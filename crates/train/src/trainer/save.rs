//! Saving models and checkpoints during a run.

use std::path::Path;

use nextword_base::free_disk_space;
use nextword_model::{Adapter, AdapterDir, BaseModel, ModelCard, ModelDir, Transformer};

use super::RunOutput;
use crate::checkpoint;
use crate::report::Reporter;
use crate::training_loop::TrainingLoop;
use crate::{RunSetup, TrainError};

/// Number of consecutive failed saves after which the run stops.
const MAX_SAVE_FAILURES: u32 = 3;

/// What a run saves of its model: all weights, or the adapter and which base it belongs to.
pub(super) enum Trained<'a> {
    Full(&'a Transformer),
    Adapter(Adapter, &'a BaseModel),
}

impl<'a> Trained<'a> {
    /// The trained part of `model`, which is off the autodiff graph.
    pub(super) fn of(model: &'a Transformer, base: Option<&'a BaseModel>) -> Self {
        match (base, model.adapter()) {
            (Some(base), Some(adapter)) => Self::Adapter(adapter, base),
            _ => Self::Full(model),
        }
    }

    /// Bytes of its weights in a file.
    fn bytes(&self) -> u64 {
        let parameters = match self {
            Self::Full(model) => model.config().parameter_counts().total(),
            Self::Adapter(adapter, _) => adapter.parameters(),
        };
        4 * parameters as u64
    }

    /// Writes a model folder or an adapter folder.
    pub(super) fn save(
        &self,
        path: &Path,
        tokenizer_json: &str,
        card: &ModelCard,
    ) -> Result<(), TrainError> {
        match self {
            Self::Full(model) => ModelDir::save(path, model, tokenizer_json, card)?,
            Self::Adapter(adapter, base) => AdapterDir::save(path, adapter, base, card)?,
        }
        Ok(())
    }
}

/// The base of a run with `[lora]`.
fn base(setup: &RunSetup) -> Option<&BaseModel> {
    setup.lora.as_ref().map(|base| &base.description)
}

impl RunOutput {
    /// Writes the model with the lowest validation loss.
    pub(super) fn save_best(
        &self,
        training: &TrainingLoop,
        model: &Transformer,
    ) -> Result<(), TrainError> {
        let path = self.folder.best_path();
        let trained = Trained::of(model, base(&training.setup));
        check_space(&path, trained.bytes())?;
        nextword_kernels::release_unused_memory();
        trained.save(&path, &self.tokenizer_json, &training.card())
    }

    pub(super) fn save_when_due(
        &mut self,
        training: &mut TrainingLoop,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        let every = training.setup.config.checkpoint.every;
        if every > 0 && training.state.step.is_multiple_of(every) {
            let saved = self.save(training, reporter);
            self.tolerate_save_error(saved, reporter)?;
        }
        Ok(())
    }

    /// Writes a checkpoint and the last model.
    pub(super) fn save(
        &mut self,
        training: &mut TrainingLoop,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        self.folder.check_exists()?;
        // Those of the last update are not needed while the weights are copied.
        nextword_kernels::release_unused_memory();
        let model = training.stepper.inference_model();
        training.check_weights(&model)?;
        let step = training.state.step;
        training.state.metrics_bytes = self.metrics.sync()?;
        training.state.elapsed = training.elapsed();
        let (folder, card) = (self.folder.checkpoints_path(), training.card());
        let (moments, state) = (training.moments(), &training.state);
        let json = &self.tokenizer_json;
        let trained = Trained::of(&model, base(&training.setup));
        let moment_values: usize = moments.tensors().iter().map(|(_, len)| len).sum();
        let bytes = 2 * trained.bytes() + 4 * moment_values as u64;
        check_space(self.folder.path(), bytes)?;
        let path = match &trained {
            Trained::Full(model) => {
                checkpoint::save_model(&folder, model, &*moments, state, json, &card)?
            }
            Trained::Adapter(adapter, base) => {
                checkpoint::save_trained_adapter(&folder, adapter, base, &*moments, state, &card)?
            }
        };
        checkpoint::prune(&folder, &training.setup.config.checkpoint)?;
        trained.save(&self.folder.last_path(), json, &card)?;
        self.save_failures = 0;
        self.saved_at = Some(step);
        self.checkpoint = Some(step);
        reporter.saved(step, &path);
        Ok(())
    }

    /// Saves the final state, unless it is saved already.
    pub(super) fn save_at_end(
        &mut self,
        training: &mut TrainingLoop,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        self.folder.check_exists()?;
        if self.saved_at == Some(training.state.step) {
            return Ok(());
        }
        self.save(training, reporter).map_err(|e| {
            if e.is_write_failure() {
                self.not_saved(e)
            } else {
                e
            }
        })
    }

    /// Reports a failed write as a warning, unless writes keep failing.
    pub(super) fn tolerate_save_error(
        &mut self,
        saved: Result<(), TrainError>,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        match saved {
            Err(e) if e.is_write_failure() && self.save_failures + 1 < MAX_SAVE_FAILURES => {
                self.save_failures += 1;
                reporter.warned(&format!(
                    "not saved: {}; training continues and tries again at the next interval",
                    e.fact()
                ));
                Ok(())
            }
            Err(e) if e.is_write_failure() => Err(self.not_saved(e)),
            other => other,
        }
    }

    fn not_saved(&self, source: TrainError) -> TrainError {
        TrainError::NotSaved {
            folder: self.folder.path().to_path_buf(),
            source: Box::new(source),
        }
    }
}

/// Checks that `needed` bytes are free on the disk of `path`, before anything is written.
fn check_space(path: &Path, needed: u64) -> Result<(), TrainError> {
    match free_disk_space(path) {
        Some(free) if free < needed => Err(TrainError::DiskFull {
            path: path.to_path_buf(),
            needed,
            free,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_needs_free_space() {
        let folder = Path::new(".");
        assert!(check_space(folder, 1).is_ok());
        let checked = check_space(folder, u64::MAX);
        assert_eq!(checked.is_err(), cfg!(unix));
        let Err(error) = checked else { return };
        assert!(error.is_write_failure());
        let message = error.to_string();
        assert!(
            message.ends_with("; hint: free disk space, or lower checkpoint.keep_last"),
            "{message}"
        );
        assert!(!error.fact().contains("hint"));
        let failed = std::io::Error::other("no space");
        for source in [error, TrainError::io("x", "write")(failed)] {
            let source = Box::new(source);
            let inner = source.to_string();
            let folder = folder.to_path_buf();
            let wrapped = TrainError::NotSaved { folder, source }.to_string();
            assert!(wrapped.starts_with(&inner), "{wrapped}");
            assert_eq!(wrapped.matches("hint:").count(), 1, "{wrapped}");
            assert!(wrapped.ends_with(", then continue with `nextword resume .`"));
        }
    }
}
