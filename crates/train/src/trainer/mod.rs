//! Training in a run folder, and in memory.

mod completions;
mod in_memory;
#[cfg(test)]
mod lora_tests;
#[cfg(test)]
mod preference_tests;
mod probes;
mod resume;
mod save;
mod stop_flag;
#[cfg(test)]
mod stop_tests;
mod warnings;
mod worker;

use nextword_model::{DeviceName, GraphicsAdapter, Transformer, peak_memory, resident_memory};

pub use in_memory::{InMemoryTrainer, TrainedModel};
pub use stop_flag::StopFlag;
pub use worker::Worker;

use crate::folder::RunFolder;
use crate::metrics::{MetricsFile, MetricsLine};
use crate::ranks::Start;
use crate::report::{
    Hooks, LoraInfo, NullReporter, Outcome, Progress, Reporter, RunInfo, SampleRequest, StepReport,
    StopReason, ValidationReport,
};
use crate::training_loop::{LoopObserver, TrainingLoop, initial_state};
use crate::{OtherTextLoss, RunConfig, RunSetup, TrainError};

/// A run in a folder, new or resumed. To train without a folder, see [`InMemoryTrainer`].
#[derive(Debug)]
pub struct Trainer {
    training: TrainingLoop,
    output: RunOutput,
}

/// The files of a run, and what is known about them.
#[derive(Debug)]
struct RunOutput {
    folder: RunFolder,
    metrics: MetricsFile,
    tokenizer_json: String,
    skipped: Vec<String>,
    /// The step of the last checkpoint that this process saved, or found with the same model in `last`.
    saved_at: Option<u64>,
    /// The step of the last checkpoint, from this process or an earlier one.
    checkpoint: Option<u64>,
    save_failures: u32,
}

impl Trainer {
    /// Starts a new run in `folder`.
    ///
    /// # Errors
    /// [`TrainError`] if the model cannot be created or the folder cannot be written.
    pub fn begin(setup: RunSetup, folder: RunFolder) -> Result<Self, TrainError> {
        let model = setup.initial_model()?;
        let optimizer = setup.config.new_optimizer();
        let state = initial_state(&setup);
        let start = Start {
            model,
            optimizer,
            moments: None,
            state,
        };
        let mut trainer = Self::new(setup, folder, start)?;
        if trainer.has_source() {
            let Self { training, output } = &mut trainer;
            output.save(training, &mut NullReporter)?;
            trainer.detach_from_source()?;
        }
        Ok(trainer)
    }

    /// Whether the run's configuration, as it was read, starts from a model.
    fn has_source(&self) -> bool {
        self.training.setup.config.start_from.is_some()
    }

    /// From here on, the run no longer needs the model that it started from, or if it adapts a model, no longer the
    /// adapter that it continues. A checkpoint must exist.
    fn detach_from_source(&self) -> Result<(), TrainError> {
        let Self { training, output } = self;
        let setup = &training.setup;
        match setup.base_model() {
            Some(base) => {
                let config = output.folder.detached(&setup.config, Some(base));
                output.folder.write_config(&config)
            }
            None => output
                .folder
                .detach_from_source(&setup.config, &output.tokenizer_json),
        }
    }

    fn new(setup: RunSetup, folder: RunFolder, start: Start) -> Result<Self, TrainError> {
        let metrics = MetricsFile::open(&folder.metrics_path(), start.state.metrics_bytes)?;
        let tokenizer_json = setup.dataset.tokenizer.to_json()?;
        Ok(Self {
            training: TrainingLoop::new(setup, start)?,
            output: RunOutput {
                folder,
                metrics,
                tokenizer_json,
                skipped: Vec::new(),
                saved_at: None,
                checkpoint: None,
                save_failures: 0,
            },
        })
    }

    /// Stores `config`, with changes that a resumed run may have, in the run's folder. The model that the run
    /// started from is left out, since the run has its weights and tokenizer, unless the run adapts it.
    ///
    /// # Errors
    /// [`TrainError::Model`] if the file cannot be written.
    pub fn store_config(&self, config: &RunConfig) -> Result<(), TrainError> {
        let folder = &self.output.folder;
        if self.has_source() {
            let base = self.training.setup.base_model();
            return folder.write_config(&folder.detached(config, base));
        }
        folder.write_config(config)
    }

    /// Trains until the last update, early stopping, or a request through `stop`. Always saves the
    /// final state.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if a value is NaN or infinite; others if files cannot be written.
    pub fn run(
        mut self,
        reporter: &mut dyn Reporter,
        hooks: &mut dyn Hooks,
        stop: &StopFlag,
    ) -> Result<Outcome, TrainError> {
        reporter.started(&self.info());
        for warning in self.training.setup.warnings() {
            reporter.warned(&warning);
        }
        let Self { training, output } = &self;
        if output.checkpoint.is_some() {
            stop.mark_checkpoint();
        }
        if training.setup.is_on_gpu() && training.state.step < training.setup.config.train.steps {
            let is_software = is_software_adapter(&training.setup.config.device);
            reporter.preparing(if is_software {
                "compiling GPU programs for the first step on a software adapter; this may take many minutes"
            } else {
                "compiling GPU programs for the first step; this may take a minute"
            });
        }
        let reason = self.train(reporter, hooks, stop)?;
        self.finish(reason, reporter)
    }

    /// Does what comes before the loop, and runs it.
    fn train(
        &mut self,
        reporter: &mut dyn Reporter,
        hooks: &mut dyn Hooks,
        stop: &StopFlag,
    ) -> Result<StopReason, TrainError> {
        let Self { training, output } = self;
        let reference = output.folder.reference_path();
        match training.prepare_preferences(Some(&reference), reporter, || stop.is_raised()) {
            // Such a run has one rank.
            Err(TrainError::Interrupted) => return Ok(StopReason::Interrupted),
            prepared => prepared?,
        }
        match probes::run(training, &output.folder, false, reporter, hooks, stop) {
            // The loop stops too, together with the other ranks.
            Err(TrainError::Interrupted) => {}
            probed => probed?,
        }
        let flag = stop.clone();
        training.setup.group.watch(move || flag.is_raised());
        let mut observer = RunObserver {
            output: &mut *output,
            reporter: &mut *reporter,
            hooks,
            stop,
        };
        let reason = training.run(&mut observer);
        reason.map_err(|error| with_checkpoint(error, output.checkpoint))
    }

    fn info(&self) -> RunInfo {
        let setup = &self.training.setup;
        let config = &setup.config;
        RunInfo {
            name: config.name.clone(),
            folder: self.output.folder.path().to_path_buf(),
            device: setup.device_name(),
            parameters: config.model.parameter_counts().total(),
            lora: setup.lora.as_ref().map(|base| LoraInfo {
                trained_parameters: base.trained_parameters,
                base: base.model.path.clone(),
            }),
            vocab_size: config.model.vocab_size,
            train_tokens: setup.token_counts().0,
            trained_tokens: setup.trained_tokens(),
            validation_tokens: setup.token_counts().1,
            steps: config.train.steps,
            tokens_per_step: setup.loader.targets_per_step().round() as usize,
            resumed_at: self.training.state.step,
            prompt_template: config.samples.prompt_template.clone(),
            prompt: setup.example_prompt(),
            is_chat: setup.conversations.is_some(),
            architecture: config.model.architecture,
            skipped: self.output.skipped.clone(),
        }
    }

    fn finish(
        self,
        reason: StopReason,
        reporter: &mut dyn Reporter,
    ) -> Result<Outcome, TrainError> {
        let Self {
            mut training,
            mut output,
        } = self;
        training
            .with_moments(|training| output.save_at_end(training, reporter))
            .map_err(|error| with_checkpoint(error, output.checkpoint))?;
        tracing::debug!(peak_memory = peak_memory(), "run ended");
        let state = &training.state;
        let outcome = Outcome {
            reason,
            step: state.step,
            loss: state.loss,
            best: state.best,
            validation: state.validation,
            other_text: training.other_text.clone(),
            elapsed: state.elapsed,
            folder: output.folder.path().to_path_buf(),
        };
        reporter.ended(&outcome);
        Ok(outcome)
    }
}

/// Adds the step of the last checkpoint to the report of a diverged run.
fn with_checkpoint(mut error: TrainError, last: Option<u64>) -> TrainError {
    if let TrainError::Diverged { checkpoint, .. } = &mut error {
        *checkpoint = last;
    }
    error
}

/// Writes metrics, samples, probes, checkpoints and models during the loop.
struct RunObserver<'a> {
    output: &'a mut RunOutput,
    reporter: &'a mut dyn Reporter,
    hooks: &'a mut dyn Hooks,
    stop: &'a StopFlag,
}

impl LoopObserver for RunObserver<'_> {
    fn stop_requested(&self) -> bool {
        self.stop.is_raised()
    }

    fn progressed(&mut self, progress: &Progress<'_>) {
        self.reporter.progressed(progress);
    }

    fn stepped(
        &mut self,
        training: &TrainingLoop,
        report: &StepReport,
        logged: bool,
    ) -> Result<(), TrainError> {
        self.stop.mark_stepped();
        self.reporter.stepped(report, logged);
        if !logged {
            return Ok(());
        }
        self.output.folder.check_exists()?;
        self.output.metrics.write(&MetricsLine {
            step: report.step,
            tokens: training.state.tokens,
            loss: Some(report.loss),
            preferences: report.preferences,
            lr: Some(report.learning_rate),
            grad_norm: Some(report.grad_norm),
            tokens_per_second: Some(report.tokens_per_second),
            waited_share: report.waited_share,
            memory: resident_memory(),
            elapsed: training.elapsed(),
            ..MetricsLine::default()
        })
    }

    fn validated(
        &mut self,
        training: &TrainingLoop,
        report: &ValidationReport,
    ) -> Result<(), TrainError> {
        self.output.folder.check_exists()?;
        let completions = completions::evaluate(training, self.reporter, self.hooks, self.stop)?;
        self.output.metrics.write(&MetricsLine {
            step: report.step,
            tokens: training.state.tokens,
            val_loss: Some(report.loss),
            preferences: report.preferences,
            ended: completions.and_then(|report| report.ended_share()),
            exact: completions.and_then(|report| report.exact_share()),
            elapsed: training.elapsed(),
            ..MetricsLine::default()
        })?;
        let report = ValidationReport {
            completions,
            ..*report
        };
        warnings::report_validation(training, &report, self.reporter);
        Ok(())
    }

    fn measured_other_text(
        &mut self,
        training: &TrainingLoop,
        before: &[OtherTextLoss],
    ) -> Result<(), TrainError> {
        self.output.folder.check_exists()?;
        let losses = training.other_text.iter();
        self.output.metrics.write(&MetricsLine {
            step: training.state.step,
            tokens: training.state.tokens,
            other_text: losses.map(|text| (text.name.clone(), text.loss)).collect(),
            elapsed: training.elapsed(),
            ..MetricsLine::default()
        })?;
        warnings::report_other_text(training, before, self.reporter);
        Ok(())
    }

    fn improved(
        &mut self,
        training: &TrainingLoop,
        model: &Transformer,
    ) -> Result<bool, TrainError> {
        self.output.folder.check_exists()?;
        let saved = self.output.save_best(training, model);
        let is_saved = saved.is_ok();
        self.output.tolerate_save_error(saved, self.reporter)?;
        Ok(is_saved)
    }

    fn step_ended(&mut self, training: &mut TrainingLoop, at_end: bool) -> Result<(), TrainError> {
        self.sample(training, at_end)?;
        let folder = &self.output.folder;
        probes::run(
            training,
            folder,
            at_end,
            self.reporter,
            self.hooks,
            self.stop,
        )?;
        self.output.save_when_due(training, self.reporter)?;
        if self.output.checkpoint.is_some() {
            self.stop.mark_checkpoint();
        }
        Ok(())
    }
}

impl RunObserver<'_> {
    /// Generates and writes samples when due.
    fn sample(&mut self, training: &TrainingLoop, at_end: bool) -> Result<(), TrainError> {
        let (setup, state) = (&training.setup, &training.state);
        let config = &setup.config.samples;
        let step = state.step;
        let is_due = config.every > 0 && (step.is_multiple_of(config.every) || at_end);
        if !is_due {
            return Ok(());
        }
        let model = training.stepper.inference_model();
        nextword_kernels::release_unused_memory();
        let tokenizer = setup.tokenizer();
        let mut samples = Vec::new();
        for (done, prompt) in config.prompts.iter().enumerate() {
            self.reporter.progressed(&Progress {
                what: "samples",
                done,
                total: config.prompts.len(),
            });
            self.stop.check()?;
            let request = SampleRequest {
                special: &setup.special,
                prompt,
                max_tokens: config.max_tokens,
                temperature: config.temperature,
                seed: state.seed.wrapping_add(step),
            };
            match self.hooks.sample(&model, &tokenizer, &request) {
                Ok(Some(text)) => {
                    self.reporter.sampled(step, prompt, &text);
                    samples.push(format!("--- prompt: {prompt:?}\n{prompt}{text}\n"));
                }
                Ok(None) => {}
                Err(TrainError::Interrupted) => return Err(TrainError::Interrupted),
                Err(e) => self
                    .reporter
                    .warned(&format!("cannot sample at step {step}: {e}")),
            }
        }
        samples.extend(completions::show(
            training,
            &model,
            self.reporter,
            self.hooks,
            self.stop,
        )?);
        self.output.folder.check_exists()?;
        let folder = self.output.folder.samples_path();
        let file = folder.join(format!("step-{step:08}.txt"));
        let written =
            std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, samples.concat()));
        if let Err(e) = written {
            let shown = file.display();
            self.reporter
                .warned(&format!("{shown}: cannot write the sample: {e}"));
        }
        Ok(())
    }
}

/// Whether the device `name` is a software adapter, which compiles programs slowly.
fn is_software_adapter(name: &str) -> bool {
    matches!(
        name.parse::<DeviceName>(),
        Ok(DeviceName::Wgpu(_, GraphicsAdapter::Software))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_software_adapters_are_slow_to_compile() {
        assert!(is_software_adapter("wgpu:software"));
        assert!(is_software_adapter("vulkan:software"));
        for name in ["flex", "wgpu", "wgpu:1", "auto", "cuda", "software"] {
            assert!(!is_software_adapter(name), "{name}");
        }
    }
}
