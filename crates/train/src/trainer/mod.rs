//! The training loop.

mod divergence;
mod probes;
mod resume;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_model::{ModelCard, ModelDir, Transformer};

use crate::checkpoint::{self, State};
use crate::fingerprint::{fingerprint, settings};
use crate::folder::RunFolder;
use crate::metrics::{MetricsFile, MetricsLine};
use crate::nonfinite::first_nonfinite_weight;
use crate::report::{
    Hooks, NullReporter, Outcome, Reporter, RunInfo, StepReport, StopReason, ValidationReport,
};
use crate::step::read_scalars;
use crate::{Optimizer, RunSetup, TrainError, forward_backward};

/// Number of steps whose batches are prefetched.
const PREFETCH_STEPS: usize = 2;

/// Number of consecutive failed saves after which the run stops.
const MAX_SAVE_FAILURES: u32 = 3;

/// Number of gradient norms in a divergence report.
const NORM_HISTORY: usize = 8;

/// Requests that a run saves and stops after the current update.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Requests a stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was requested.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A run, new or resumed.
pub struct Trainer {
    setup: RunSetup,
    folder: RunFolder,
    /// `None` only during an update.
    model: Option<Transformer>,
    optimizer: Optimizer,
    state: State,
    metrics: MetricsFile,
    tokenizer_json: String,
    skipped: Vec<String>,
    /// The step of the last checkpoint that this process saved.
    saved_at: Option<u64>,
    save_failures: u32,
    norms: Vec<f64>,
    timing: Timing,
}

/// Time and throughput of this process.
struct Timing {
    start: Instant,
    start_step: u64,
    elapsed_before: f64,
    /// Seconds and tokens of the updates since the last line of metrics.
    seconds: f64,
    tokens: u64,
}

impl Trainer {
    /// Starts a new run in `folder`.
    ///
    /// # Errors
    /// [`TrainError`] if the model cannot be created or the folder cannot be written.
    pub fn begin(setup: RunSetup, folder: RunFolder) -> Result<Self, TrainError> {
        let model = setup.initial_model()?;
        let optimizer = Optimizer::new(setup.config.optimizer);
        let state = State {
            format: 1,
            seed: setup.config.seed,
            data: setup.data_fingerprint(),
            fingerprint: fingerprint(&setup.config),
            settings: Some(settings(&setup.config)),
            ..State::default()
        };
        let mut trainer = Self::new(setup, folder, model, optimizer, state)?;
        if trainer.setup.config.start_from.is_some() {
            // From here on the run no longer needs the model that it started from.
            trainer.save(&mut NullReporter)?;
            let config = &trainer.setup.config;
            trainer
                .folder
                .detach_from_source(config, &trainer.tokenizer_json)?;
        }
        Ok(trainer)
    }

    fn new(
        setup: RunSetup,
        folder: RunFolder,
        model: Transformer,
        optimizer: Optimizer,
        state: State,
    ) -> Result<Self, TrainError> {
        let precision = setup.config.train.precision;
        let metrics = MetricsFile::open(&folder.metrics_path(), state.metrics_bytes)?;
        let tokenizer_json = setup.dataset.tokenizer.to_json()?;
        Ok(Self {
            model: Some(model.train().with_precision(precision)?),
            optimizer,
            timing: Timing {
                start: Instant::now(),
                start_step: state.step,
                elapsed_before: state.elapsed,
                seconds: 0.0,
                tokens: 0,
            },
            setup,
            folder,
            state,
            metrics,
            tokenizer_json,
            skipped: Vec::new(),
            saved_at: None,
            save_failures: 0,
            norms: Vec::new(),
        })
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
        for warning in self.setup.warnings() {
            reporter.warned(&warning);
        }
        let micro_batches = self.setup.config.train.accumulation;
        let prefetched = PREFETCH_STEPS * micro_batches;
        let mut stream = self.setup.loader.prefetch(self.state.step, prefetched);
        let mut reason = StopReason::Finished;
        self.run_probes(false, reporter, hooks);
        while self.state.step < self.setup.config.train.steps {
            if self.should_stop_early() {
                reason = StopReason::EarlyStopped;
                break;
            }
            if stop.is_raised() {
                reason = StopReason::Interrupted;
                break;
            }
            let batches = stream.by_ref().take(micro_batches);
            let batches = batches.collect::<Result<Vec<_>, _>>()?;
            if batches.len() != micro_batches {
                let problem = "internal error: the data loader ended before the run; hint: please report this bug";
                return Err(TrainError::run(self.folder.path(), problem));
            }
            self.update(&batches, reporter)?;
            let at_end = self.state.step == self.setup.config.train.steps;
            self.validate(at_end, reporter)?;
            self.sample(at_end, reporter, hooks);
            self.run_probes(at_end, reporter, hooks);
            self.save_when_due(reporter)?;
        }
        self.finish(reason, reporter)
    }

    fn model(&self) -> &Transformer {
        let model = self.model.as_ref();
        model.unwrap_or_else(|| unreachable!("an update always puts the model back"))
    }

    /// The model for inference: off the autodiff graph, in f32.
    fn inference_model(&self) -> Transformer {
        self.model().valid().in_f32()
    }

    fn info(&self) -> RunInfo {
        let config = &self.setup.config;
        RunInfo {
            name: config.name.clone(),
            folder: self.folder.path().to_path_buf(),
            device: config.device.clone(),
            parameters: config.model.parameter_counts().total(),
            vocab_size: config.model.vocab_size,
            train_tokens: self.setup.dataset.train.len(),
            validation_tokens: self.setup.dataset.validation.len(),
            steps: config.train.steps,
            tokens_per_step: self.setup.loader.sequences_per_step() * config.model.context_length,
            resumed_at: self.state.step,
            prompt_template: config.samples.prompt_template.clone(),
            skipped: self.skipped.clone(),
        }
    }

    /// Makes one update: forward, backward, clipping, optimizer, report.
    fn update(
        &mut self,
        batches: &[TokenBatch],
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        let start = Instant::now();
        let config = &self.setup.config;
        let (step, seed) = (self.state.step, config.seed);
        let _span = tracing::debug_span!("step", step).entered();
        let schedule = config.schedule;
        let lr = schedule.learning_rate(step, config.train.steps);
        let (loss, gradients) =
            forward_backward(self.model(), batches, seed, step, config.train.recompute);
        let norm = gradients
            .norm()
            .unwrap_or_else(|| Tensor::zeros_like(&loss));
        let [loss, grad_norm] = read_scalars(loss, norm);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(self.diverged(batches, &gradients, lr, loss));
        }
        let gradients = gradients.clip(grad_norm, config.optimizer.clip_norm);
        let max_lr = schedule.learning_rate;
        if let Some(model) = self.model.take() {
            // With sole ownership, the weights are updated in place.
            self.model = Some(self.optimizer.update(model, gradients, lr, max_lr));
        }

        self.state.step += 1;
        let tokens: usize = batches.iter().map(|batch| batch.batch * batch.seq).sum();
        self.state.tokens += tokens as u64;
        self.state.loss = Some(loss);
        self.norms.push(grad_norm);
        self.norms
            .drain(..self.norms.len().saturating_sub(NORM_HISTORY));
        self.timing.tokens += tokens as u64;
        let seconds = start.elapsed().as_secs_f64();
        self.timing.seconds += seconds;
        tracing::debug!(loss, grad_norm, lr, ms = seconds * 1e3, "step done");
        self.report_step(loss, lr, grad_norm, reporter)
    }

    fn report_step(
        &mut self,
        loss: f64,
        lr: f64,
        grad_norm: f64,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        let train = self.setup.config.train;
        let step = self.state.step;
        let logged = step.is_multiple_of(train.log_every) || step == train.steps || step == 1;
        let tokens_per_second = self.timing.tokens as f64 / self.timing.seconds.max(1e-9);
        let steps_done = (step - self.timing.start_step).max(1);
        let seconds_per_step = self.timing.start.elapsed().as_secs_f64() / steps_done as f64;
        let report = StepReport {
            step,
            steps: train.steps,
            loss,
            learning_rate: lr,
            grad_norm,
            tokens_per_second,
            eta: seconds_per_step * train.steps.saturating_sub(step) as f64,
        };
        reporter.stepped(&report, logged);
        if logged {
            self.metrics.write(&MetricsLine {
                step,
                tokens: self.state.tokens,
                loss: Some(loss),
                lr: Some(lr),
                grad_norm: Some(grad_norm),
                tokens_per_second: Some(tokens_per_second),
                elapsed: self.elapsed(),
                ..MetricsLine::default()
            })?;
            self.timing.tokens = 0;
            self.timing.seconds = 0.0;
        }
        Ok(())
    }

    /// Whether early stopping applies.
    fn should_stop_early(&self) -> bool {
        let patience = self.setup.config.validation.patience;
        patience > 0 && self.state.since_best >= patience
    }

    /// Computes the validation loss when due.
    fn validate(&mut self, at_end: bool, reporter: &mut dyn Reporter) -> Result<(), TrainError> {
        let config = self.setup.config.validation;
        let step = self.state.step;
        let is_due = config.every > 0 && step.is_multiple_of(config.every) || at_end;
        let Some(windows) = self.setup.validation.as_ref().filter(|_| is_due) else {
            return Ok(());
        };
        let start = Instant::now();
        let model = self.inference_model();
        let evaluation = nextword_eval::evaluate(&model, windows, config.batch_size)?;
        let loss = evaluation.nats_per_token;
        if !loss.is_finite() {
            let first = "the validation loss is not finite".to_string();
            return Err(self.divergence(step, first, self.last_lr(), loss));
        }
        let improved = self.state.best.is_none_or(|best| loss < best);
        self.state.validation = Some(loss);
        let best = self.state.best.map_or(loss, |best| best.min(loss));
        self.metrics.write(&MetricsLine {
            step,
            tokens: self.state.tokens,
            val_loss: Some(loss),
            elapsed: self.elapsed(),
            ..MetricsLine::default()
        })?;
        reporter.validated(&ValidationReport {
            step,
            loss,
            best,
            tokens: evaluation.tokens as usize,
            seconds: start.elapsed().as_secs_f64(),
        });
        if !improved {
            self.state.since_best += 1;
            return Ok(());
        }
        let path = self.folder.best_path();
        let saved = ModelDir::save(&path, &model, &self.tokenizer_json, &self.card());
        if saved.is_ok() {
            // Takes effect only after the model is on disk.
            self.state.best = Some(loss);
            self.state.since_best = 0;
        }
        self.tolerate_save_error(saved.map_err(TrainError::from), reporter)
    }

    /// Learning rate of the last update.
    fn last_lr(&self) -> f64 {
        let config = &self.setup.config;
        let step = self.state.step.saturating_sub(1);
        config.schedule.learning_rate(step, config.train.steps)
    }

    fn sample(&mut self, at_end: bool, reporter: &mut dyn Reporter, hooks: &mut dyn Hooks) {
        let config = &self.setup.config.samples;
        let step = self.state.step;
        let is_due = config.every > 0 && (step.is_multiple_of(config.every) || at_end);
        if !is_due {
            return;
        }
        let model = self.inference_model();
        let tokenizer = self.setup.tokenizer();
        let mut samples = Vec::new();
        for prompt in &config.prompts {
            let (max_tokens, temperature) = (config.max_tokens, config.temperature);
            let seed = self.state.seed.wrapping_add(step);
            match hooks.sample(&model, &tokenizer, prompt, max_tokens, temperature, seed) {
                Ok(text) => {
                    reporter.sampled(step, prompt, &text);
                    samples.push(format!("--- prompt: {prompt:?}\n{prompt}{text}\n"));
                }
                Err(e) => reporter.warned(&format!("cannot sample at step {step}: {e}")),
            }
        }
        let file = self
            .folder
            .samples_path()
            .join(format!("step-{step:08}.txt"));
        let written = std::fs::create_dir_all(self.folder.samples_path())
            .and_then(|()| std::fs::write(&file, samples.concat()));
        if let Err(e) = written {
            reporter.warned(&format!("{}: cannot write the sample: {e}", file.display()));
        }
    }

    fn save_when_due(&mut self, reporter: &mut dyn Reporter) -> Result<(), TrainError> {
        let every = self.setup.config.checkpoint.every;
        if every > 0 && self.state.step.is_multiple_of(every) {
            let saved = self.save(reporter);
            self.tolerate_save_error(saved, reporter)?;
        }
        Ok(())
    }

    /// Writes a checkpoint and the last model.
    fn save(&mut self, reporter: &mut dyn Reporter) -> Result<(), TrainError> {
        let model = self.inference_model();
        if let Some(name) = first_nonfinite_weight(&model) {
            let first = format!("weight `{name}` is not finite");
            let loss = self.state.loss.unwrap_or(f64::NAN);
            return Err(self.divergence(self.state.step, first, self.last_lr(), loss));
        }
        self.state.metrics_bytes = self.metrics.sync()?;
        self.state.elapsed = self.elapsed();
        let (folder, card) = (self.folder.checkpoints_path(), self.card());
        let json = &self.tokenizer_json;
        let path = checkpoint::save(&folder, &model, &self.optimizer, &self.state, json, &card)?;
        checkpoint::prune(&folder, &self.setup.config.checkpoint)?;
        ModelDir::save(&self.folder.last_path(), &model, json, &card)?;
        self.save_failures = 0;
        self.saved_at = Some(self.state.step);
        reporter.saved(self.state.step, &path);
        Ok(())
    }

    /// Reports a failed write as a warning, unless writes keep failing.
    fn tolerate_save_error(
        &mut self,
        saved: Result<(), TrainError>,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        match saved {
            Err(e) if e.is_write_failure() && self.save_failures + 1 < MAX_SAVE_FAILURES => {
                self.save_failures += 1;
                reporter.warned(&format!(
                    "not saved: {e}; training continues and tries again at the next interval"
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

    fn finish(
        mut self,
        reason: StopReason,
        reporter: &mut dyn Reporter,
    ) -> Result<Outcome, TrainError> {
        if self.saved_at != Some(self.state.step) {
            let saved = self.save(reporter);
            saved.map_err(|e| {
                if e.is_write_failure() {
                    self.not_saved(e)
                } else {
                    e
                }
            })?;
        }
        let outcome = Outcome {
            reason,
            step: self.state.step,
            loss: self.state.loss,
            best: self.state.best,
            validation: self.state.validation,
            elapsed: self.state.elapsed,
            folder: self.folder.path().to_path_buf(),
        };
        reporter.ended(&outcome);
        Ok(outcome)
    }

    fn card(&self) -> ModelCard {
        let config = &self.setup.config;
        let vocab_size = self.setup.dataset.tokenizer.vocab_size();
        ModelCard {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            trained_on: self.setup.data_description(),
            seed: config.seed,
            step: self.state.step,
            tokens: self.state.tokens,
            parameters: config.model.parameter_counts().total() as u64,
            train_loss: self.state.loss,
            validation_loss: self.state.validation,
            prompt_template: config.samples.prompt_template.clone(),
            unused_ids: config.model.vocab_size - vocab_size,
            ..ModelCard::default()
        }
    }

    fn elapsed(&self) -> f64 {
        self.timing.elapsed_before + self.timing.start.elapsed().as_secs_f64()
    }
}
