//! The order of things in a run.

mod divergence;
mod probes;
mod resume;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_model::{Card, Record, Transformer};

use crate::checkpoint::{self, State};
use crate::fingerprint::{fingerprint, settings};
use crate::folder::RunFolder;
use crate::metrics::{MetricsFile, MetricsLine};
use crate::nonfinite::first_weight;
use crate::report::{
    Hooks, Outcome, Reporter, RunInfo, Silent, StepReport, StopReason, ValidationReport,
};
use crate::step::read;
use crate::{Ingredients, Optimizer, TrainError, forward_backward};

/// Steps that were prepared ahead of the one in work.
const PREFETCH: usize = 2;

/// Checkpoints that may fail one after the other before the run gives up.
const FAILURES: u32 = 3;

/// Gradient norms remembered for the report of a divergence.
const HISTORY: usize = 8;

/// Asks a run to save and stop after the update that it is at.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether someone asked.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One run, from its first or a saved update to its last.
pub struct Trainer {
    ingredients: Ingredients,
    folder: RunFolder,
    /// There but while it is being updated.
    model: Option<Transformer>,
    optimizer: Optimizer,
    state: State,
    metrics: MetricsFile,
    tokenizer_json: String,
    skipped: Vec<String>,
    /// The step of the last checkpoint of this process.
    saved_at: Option<u64>,
    failures: u32,
    norms: Vec<f64>,
    clock: Clock,
}

/// Where the time of this process goes.
struct Clock {
    begin: Instant,
    begin_step: u64,
    elapsed_before: f64,
    /// Seconds and tokens of updates since the last line.
    seconds: f64,
    tokens: u64,
}

impl Trainer {
    /// A new run in `folder`.
    ///
    /// # Errors
    /// [`TrainError`] if the model cannot be made or the folder not written.
    pub fn begin(ingredients: Ingredients, folder: RunFolder) -> Result<Self, TrainError> {
        let model = ingredients.first_model()?;
        let optimizer = Optimizer::new(ingredients.config.optimizer);
        let state = State {
            format: 1,
            seed: ingredients.config.seed,
            data: ingredients.data_fingerprint(),
            identity: fingerprint(&ingredients.config),
            settings: Some(settings(&ingredients.config)),
            ..State::default()
        };
        let mut trainer = Self::new(ingredients, folder, model, optimizer, state)?;
        if trainer.ingredients.config.start_from.is_some() {
            // The record may go away: from here on the run stands by itself.
            trainer.save(&mut Silent)?;
            let config = &trainer.ingredients.config;
            trainer.folder.settle(config, &trainer.tokenizer_json)?;
        }
        Ok(trainer)
    }

    fn new(
        ingredients: Ingredients,
        folder: RunFolder,
        model: Transformer,
        optimizer: Optimizer,
        state: State,
    ) -> Result<Self, TrainError> {
        let precision = ingredients.config.train.precision;
        let metrics = MetricsFile::open(&folder.metrics_path(), state.metrics_bytes)?;
        let tokenizer_json = ingredients.dataset.tokenizer.to_json()?;
        Ok(Self {
            model: Some(model.train().with_precision(precision)?),
            optimizer,
            clock: Clock {
                begin: Instant::now(),
                begin_step: state.step,
                elapsed_before: state.elapsed,
                seconds: 0.0,
                tokens: 0,
            },
            ingredients,
            folder,
            state,
            metrics,
            tokenizer_json,
            skipped: Vec::new(),
            saved_at: None,
            failures: 0,
            norms: Vec::new(),
        })
    }

    /// Trains until the last update, until the validation loss no longer falls, or until `stop` is
    /// raised. In every case the newest state is saved.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if a number is no longer finite; others if files cannot be written.
    pub fn run(
        mut self,
        reporter: &mut dyn Reporter,
        hooks: &mut dyn Hooks,
        stop: &StopFlag,
    ) -> Result<Outcome, TrainError> {
        reporter.started(&self.info());
        for warning in self.ingredients.warnings() {
            reporter.warned(&warning);
        }
        let micro_batches = self.ingredients.config.train.accumulation;
        let ahead = PREFETCH * micro_batches;
        let mut stream = self.ingredients.loader.prefetch(self.state.step, ahead);
        let mut reason = StopReason::Finished;
        self.look(false, reporter, hooks);
        while self.state.step < self.ingredients.config.train.steps {
            if self.has_lost_patience() {
                reason = StopReason::Patience;
                break;
            }
            if stop.is_raised() {
                reason = StopReason::Interrupted;
                break;
            }
            let batches = stream.by_ref().take(micro_batches);
            let batches = batches.collect::<Result<Vec<_>, _>>()?;
            if batches.len() != micro_batches {
                let problem = "its batches ended before the run did; please report this";
                return Err(TrainError::run(self.folder.path(), problem));
            }
            self.update(&batches, reporter)?;
            let at_end = self.state.step == self.ingredients.config.train.steps;
            self.measure(at_end, reporter)?;
            self.sample(at_end, reporter, hooks);
            self.look(at_end, reporter, hooks);
            self.save_when_due(reporter)?;
        }
        self.finish(reason, reporter)
    }

    fn model(&self) -> &Transformer {
        let model = self.model.as_ref();
        model.unwrap_or_else(|| unreachable!("an update always puts it back"))
    }

    /// The model off the autodiff graph, in f32.
    fn plain(&self) -> Transformer {
        self.model().valid().in_f32()
    }

    fn info(&self) -> RunInfo {
        let config = &self.ingredients.config;
        RunInfo {
            name: config.name.clone(),
            folder: self.folder.path().to_path_buf(),
            device: config.device.clone(),
            parameters: config.model.counts().total(),
            vocab_size: config.model.vocab_size,
            train_tokens: self.ingredients.dataset.train.len(),
            validation_tokens: self.ingredients.dataset.validation.len(),
            steps: config.train.steps,
            tokens_per_step: self.ingredients.loader.sequences_per_step()
                * config.model.context_length,
            resumed_at: self.state.step,
            prompt_template: config.samples.prompt_template.clone(),
            skipped: self.skipped.clone(),
        }
    }

    /// Forward, backward, clip, change the weights, tell.
    fn update(
        &mut self,
        batches: &[TokenBatch],
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        let begin = Instant::now();
        let config = &self.ingredients.config;
        let (step, seed) = (self.state.step, config.seed);
        let schedule = config.schedule;
        let rate = schedule.learning_rate(step, config.train.steps);
        let (loss, gradients) =
            forward_backward(self.model(), batches, seed, step, config.train.recompute);
        let norm = gradients
            .norm()
            .unwrap_or_else(|| Tensor::zeros_like(&loss));
        let [loss, grad_norm] = read(loss, norm);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(self.diverged(batches, &gradients, rate, loss));
        }
        let gradients = gradients.clip(grad_norm, config.optimizer.clip_norm);
        let peak = schedule.learning_rate;
        if let Some(model) = self.model.take() {
            // Held by nobody else, the weights are changed where they lie.
            self.model = Some(self.optimizer.update(model, gradients, rate, peak));
        }

        self.state.step += 1;
        let tokens: usize = batches.iter().map(|batch| batch.batch * batch.seq).sum();
        self.state.tokens += tokens as u64;
        self.state.loss = Some(loss);
        self.norms.push(grad_norm);
        self.norms.drain(..self.norms.len().saturating_sub(HISTORY));
        self.clock.tokens += tokens as u64;
        self.clock.seconds += begin.elapsed().as_secs_f64();
        self.tell_step(loss, rate, grad_norm, reporter)
    }

    fn tell_step(
        &mut self,
        loss: f64,
        rate: f64,
        grad_norm: f64,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        let train = self.ingredients.config.train;
        let step = self.state.step;
        let logged = step.is_multiple_of(train.log_every) || step == train.steps || step == 1;
        let tokens_per_second = self.clock.tokens as f64 / self.clock.seconds.max(1e-9);
        let done = (step - self.clock.begin_step).max(1);
        let per_step = self.clock.begin.elapsed().as_secs_f64() / done as f64;
        let report = StepReport {
            step,
            steps: train.steps,
            loss,
            learning_rate: rate,
            grad_norm,
            tokens_per_second,
            eta: per_step * train.steps.saturating_sub(step) as f64,
        };
        reporter.stepped(&report, logged);
        if logged {
            self.metrics.write(&MetricsLine {
                step,
                tokens: self.state.tokens,
                loss: Some(loss),
                lr: Some(rate),
                grad_norm: Some(grad_norm),
                tokens_per_second: Some(tokens_per_second),
                elapsed: self.elapsed(),
                ..MetricsLine::default()
            })?;
            self.clock.tokens = 0;
            self.clock.seconds = 0.0;
        }
        Ok(())
    }

    /// Whether the validation loss has not fallen for too long.
    fn has_lost_patience(&self) -> bool {
        let patience = self.ingredients.config.validation.patience;
        patience > 0 && self.state.since_best >= patience
    }

    /// Measures the validation loss when due.
    fn measure(&mut self, at_end: bool, reporter: &mut dyn Reporter) -> Result<(), TrainError> {
        let config = self.ingredients.config.validation;
        let step = self.state.step;
        let due = config.every > 0 && step.is_multiple_of(config.every) || at_end;
        let Some(windows) = self.ingredients.validation.as_ref().filter(|_| due) else {
            return Ok(());
        };
        let begin = Instant::now();
        let plain = self.plain();
        let measured = nextword_eval::evaluate(&plain, windows, config.batch_size)?;
        let loss = measured.nats_per_token;
        if !loss.is_finite() {
            let first = "the validation loss is not finite".to_string();
            return Err(self.divergence(step, first, self.rate(), loss));
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
            tokens: measured.tokens as usize,
            seconds: begin.elapsed().as_secs_f64(),
        });
        if !improved {
            self.state.since_best += 1;
            return Ok(());
        }
        let path = self.folder.best_path();
        let saved = Record::save(&path, &plain, &self.tokenizer_json, &self.card());
        if saved.is_ok() {
            // Counted only once it is on the disk.
            self.state.best = Some(loss);
            self.state.since_best = 0;
        }
        self.survive(saved.map_err(TrainError::from), reporter)
    }

    /// The learning rate of the last update.
    fn rate(&self) -> f64 {
        let config = &self.ingredients.config;
        let step = self.state.step.saturating_sub(1);
        config.schedule.learning_rate(step, config.train.steps)
    }

    fn sample(&mut self, at_end: bool, reporter: &mut dyn Reporter, hooks: &mut dyn Hooks) {
        let config = &self.ingredients.config.samples;
        let step = self.state.step;
        let due = config.every > 0 && (step.is_multiple_of(config.every) || at_end);
        if !due {
            return;
        }
        let plain = self.plain();
        let tokenizer = self.ingredients.tokenizer();
        let mut page = Vec::new();
        for prompt in &config.prompts {
            let (most, temperature) = (config.max_tokens, config.temperature);
            let seed = self.state.seed.wrapping_add(step);
            match hooks.sample(&plain, &tokenizer, prompt, most, temperature, seed) {
                Ok(text) => {
                    reporter.sampled(step, prompt, &text);
                    page.push(format!("--- prompt: {prompt:?}\n{prompt}{text}\n"));
                }
                Err(e) => reporter.warned(&format!("no sample at step {step}: {e}")),
            }
        }
        let file = self
            .folder
            .samples_path()
            .join(format!("step-{step:08}.txt"));
        let written = std::fs::create_dir_all(self.folder.samples_path())
            .and_then(|()| std::fs::write(&file, page.concat()));
        if let Err(e) = written {
            reporter.warned(&format!("{}: cannot write the sample: {e}", file.display()));
        }
    }

    fn save_when_due(&mut self, reporter: &mut dyn Reporter) -> Result<(), TrainError> {
        let every = self.ingredients.config.checkpoint.every;
        if every > 0 && self.state.step.is_multiple_of(every) {
            let saved = self.save(reporter);
            self.survive(saved, reporter)?;
        }
        Ok(())
    }

    /// Writes checkpoint and last record.
    fn save(&mut self, reporter: &mut dyn Reporter) -> Result<(), TrainError> {
        let plain = self.plain();
        if let Some(name) = first_weight(&plain) {
            let first = format!("weight `{name}` is not finite");
            let loss = self.state.loss.unwrap_or(f64::NAN);
            return Err(self.divergence(self.state.step, first, self.rate(), loss));
        }
        self.state.metrics_bytes = self.metrics.sync()?;
        self.state.elapsed = self.elapsed();
        let (folder, card) = (self.folder.checkpoints_path(), self.card());
        let json = &self.tokenizer_json;
        let path = checkpoint::save(&folder, &plain, &self.optimizer, &self.state, json, &card)?;
        checkpoint::prune(&folder, &self.ingredients.config.checkpoint)?;
        Record::save(&self.folder.last_path(), &plain, json, &card)?;
        self.failures = 0;
        self.saved_at = Some(self.state.step);
        reporter.saved(self.state.step, &path);
        Ok(())
    }

    /// Lets a failed write pass with a warning, unless it keeps failing.
    fn survive(
        &mut self,
        saved: Result<(), TrainError>,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        match saved {
            Err(e) if e.is_write_failure() && self.failures + 1 < FAILURES => {
                self.failures += 1;
                reporter.warned(&format!(
                    "not saved: {e}; training goes on and tries again at the next interval"
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

    fn card(&self) -> Card {
        let config = &self.ingredients.config;
        let tokens = self.ingredients.dataset.tokenizer.vocab_size();
        Card {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            trained_on: self.ingredients.data_description(),
            seed: config.seed,
            step: self.state.step,
            tokens: self.state.tokens,
            parameters: config.model.counts().total() as u64,
            train_loss: self.state.loss,
            validation_loss: self.state.validation,
            prompt_template: config.samples.prompt_template.clone(),
            unused_ids: config.model.vocab_size - tokens,
            ..Card::default()
        }
    }

    fn elapsed(&self) -> f64 {
        self.clock.elapsed_before + self.clock.begin.elapsed().as_secs_f64()
    }
}
