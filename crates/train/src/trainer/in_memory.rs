//! Training without a folder.

use std::path::Path;
use std::sync::Arc;

use nextword_data::Tokenizer;
use nextword_model::{BaseModel, ModelCard, ModelDir, Transformer};

use super::StopFlag;
use super::save::Trained;
use super::warnings::{report_other_text, report_validation};
use crate::ranks::Start;
use crate::report::{Progress, Reporter, StepReport, StopReason, ValidationReport};
use crate::training_loop::{LoopObserver, TrainingLoop, initial_state};
use crate::{OtherTextLoss, RunSetup, TrainError};

/// Trains in memory: without a folder, a lock or any file.
///
/// Makes the same updates as [`Trainer`](crate::Trainer): with the same configuration and text, the
/// weights at the end are bit for bit those of the run's model `last`. Checkpoints, samples and probes
/// of the configuration are ignored.
///
/// ```
/// use nextword_data::{Dataset, TokenizerConfig};
/// use nextword_model::presets;
/// use nextword_train::{InMemoryTrainer, NullReporter, RunConfig, RunSetup, StopFlag};
///
/// # fn main() -> Result<(), nextword_train::TrainError> {
/// let text = "what is statquest <EOS> awesome ".repeat(20);
/// let dataset = Dataset::from_text(&text, &TokenizerConfig::words())?;
/// let mut config = RunConfig { model: presets::statquest(0), ..RunConfig::default() };
/// config.train.steps = 3;
/// config.schedule.warmup_steps = 0;
/// let setup = RunSetup::from_dataset(config, dataset)?;
/// let trained = InMemoryTrainer::new(setup)?.run(&mut NullReporter, &StopFlag::default())?;
/// assert_eq!(trained.card.step, 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct InMemoryTrainer {
    setup: RunSetup,
    model: Transformer,
}

/// A trained model with everything that a model folder contains.
#[derive(Clone, Debug)]
pub struct TrainedModel {
    /// The model, for inference.
    pub model: Transformer,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Its training: data, seed, steps, losses.
    pub card: ModelCard,
    /// Why the training ended.
    pub reason: StopReason,
    /// The model that was adapted, if the run has `[lora]` and started from a model on disk.
    pub base: Option<BaseModel>,
}

impl InMemoryTrainer {
    /// Creates the initial model of `setup`: random, or that of `start_from`.
    ///
    /// # Errors
    /// The errors of [`RunSetup::initial_model`].
    pub fn new(setup: RunSetup) -> Result<Self, TrainError> {
        let model = setup.initial_model()?;
        Ok(Self { setup, model })
    }

    /// Continues the training of `model` on its device, with new optimizer moments. With `[lora]`, the model stays as it
    /// is, and an adapter of it is trained: the one that it has, or a new one.
    ///
    /// # Errors
    /// [`TrainError::Config`] if the model is quantized and there is no `[lora]`, or if it differs from the
    /// configuration's.
    pub fn from_model(mut setup: RunSetup, model: Transformer) -> Result<Self, TrainError> {
        if model.bits().is_some() && setup.config.lora.is_none() {
            return Err(TrainError::config(
                "model",
                "the weights of a quantized model cannot be trained",
                "train the unquantized model, or an adapter of it with lora",
            ));
        }
        if *model.config() != setup.config.model {
            return Err(TrainError::config(
                "model",
                "differs from the architecture of the given model",
                "set it to the config of that model",
            ));
        }
        setup.device = model.device();
        let model = match &setup.config.lora {
            Some(lora) if !model.has_adapter() => {
                lora.check_model(model.config())?;
                model.with_new_adapter(&lora.adapter_config(), setup.config.seed)?
            }
            _ => model,
        };
        Ok(Self { setup, model })
    }

    /// Trains until the last update, early stopping, or a request through `stop`. `reporter` receives
    /// updates, validations and warnings.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if a value is NaN or infinite; the errors of the data and of the
    /// validation.
    pub fn run(
        self,
        reporter: &mut dyn Reporter,
        stop: &StopFlag,
    ) -> Result<TrainedModel, TrainError> {
        for warning in self.setup.warnings() {
            reporter.warned(&warning);
        }
        let optimizer = self.setup.config.new_optimizer();
        let state = initial_state(&self.setup);
        let start = Start {
            model: self.model,
            optimizer,
            moments: None,
            state,
        };
        let mut training = TrainingLoop::new(self.setup, start)?;
        let reason = match training.prepare_preferences(None, reporter, || stop.is_raised()) {
            Err(TrainError::Interrupted) => StopReason::Interrupted,
            prepared => {
                prepared?;
                training.run(&mut ReportingObserver { reporter, stop })?
            }
        };
        let model = training.stepper.inference_model();
        training.check_weights(&model)?;
        Ok(TrainedModel {
            card: training.card(),
            model,
            tokenizer: training.setup.tokenizer(),
            reason,
            base: training.setup.lora.map(|base| base.description),
        })
    }
}

impl TrainedModel {
    /// Writes a model folder, which the program and every other part of the library can open: for an adapted model on
    /// disk an adapter folder, and for one in memory a model folder with the merged weights. An earlier model in `path`
    /// is replaced atomically.
    ///
    /// # Errors
    /// [`TrainError::Model`] if it cannot be written, or if the adapter of a quantized model in memory cannot be merged.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TrainError> {
        let json = self.tokenizer.to_json()?;
        let path = path.as_ref();
        if self.base.is_none() && self.model.has_adapter() {
            let merged = self.model.clone().merge_adapter()?;
            return Ok(ModelDir::save(path, &merged, &json, &self.card)?);
        }
        Trained::of(&self.model, self.base.as_ref()).save(path, &json, &self.card)
    }
}

/// Passes the events of the loop to a reporter.
struct ReportingObserver<'a> {
    reporter: &'a mut dyn Reporter,
    stop: &'a StopFlag,
}

impl LoopObserver for ReportingObserver<'_> {
    fn stop_requested(&self) -> bool {
        self.stop.is_raised()
    }

    fn progressed(&mut self, progress: &Progress<'_>) {
        self.reporter.progressed(progress);
    }

    fn stepped(
        &mut self,
        _training: &TrainingLoop,
        report: &StepReport,
        logged: bool,
    ) -> Result<(), TrainError> {
        self.reporter.stepped(report, logged);
        Ok(())
    }

    fn validated(
        &mut self,
        training: &TrainingLoop,
        report: &ValidationReport,
    ) -> Result<(), TrainError> {
        report_validation(training, report, self.reporter);
        Ok(())
    }

    fn measured_other_text(
        &mut self,
        training: &TrainingLoop,
        before: &[OtherTextLoss],
    ) -> Result<(), TrainError> {
        report_other_text(training, before, self.reporter);
        Ok(())
    }
}
