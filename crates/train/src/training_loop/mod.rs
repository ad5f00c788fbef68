//! The step loop of all trainers: updates, validation and early stopping. It writes no files and has no
//! output; a [`LoopObserver`] does that.

mod divergence;
mod evaluation;
mod moments;

use std::time::Instant;

use burn::module::Module;
use nextword_data::{DataError, TokenBatch};
use nextword_model::{ModelCard, Transformer, peak_memory};
use nextword_parallel::Division;

use crate::checkpoint::{AfterUpdate, State};
use crate::fingerprint::{fingerprint, settings};
use crate::objective::Objective;
use crate::optimizer::shards_of;
use crate::ranks::{
    MomentTensor, Start, StepAgreement, check_agreement, check_same_weights, decision_of_first,
    share_start,
};
use crate::reduction::StepPart;
use crate::report::{Progress, StepReport, StopReason, ValidationReport};
use crate::stepper::StepGradients;
use crate::{OtherTextLoss, PreferenceMetrics, RunSetup, Stepper, TrainError};

/// Number of steps whose batches are prefetched.
const PREFETCH_STEPS: usize = 2;

/// Number of gradient norms in a divergence report.
const NORM_HISTORY: usize = 8;

/// A training in progress.
#[derive(Debug)]
pub(crate) struct TrainingLoop {
    pub(crate) setup: RunSetup,
    pub(crate) stepper: Stepper,
    pub(crate) state: State,
    /// Loss and metrics of the validation before the current one.
    pub(crate) last_validation: Option<(f64, PreferenceMetrics)>,
    /// The last losses of other texts.
    pub(crate) other_text: Vec<OtherTextLoss>,
    /// The moments of all ranks, while they can be gathered (see [`with_moments`](TrainingLoop::with_moments)).
    gathered: Option<Vec<MomentTensor>>,
    /// The loss of a run on preferences (see [`prepare_preferences`](TrainingLoop::prepare_preferences)).
    objective: Option<Objective>,
    norms: Vec<f64>,
    timing: Timing,
}

/// Time and throughput of this process.
#[derive(Debug)]
struct Timing {
    start: Instant,
    start_step: u64,
    elapsed_before: f64,
    /// Seconds and tokens of the updates since the last logged one.
    seconds: f64,
    tokens: u64,
    /// Seconds of them for which this rank waited for others.
    waited: f64,
}

/// What a trainer does at each point of the loop.
pub(crate) trait LoopObserver {
    /// Whether to stop before the next update, or before the next batch of an evaluation.
    fn stop_requested(&self) -> bool;

    /// A part of an evaluation is done.
    fn progressed(&mut self, _progress: &Progress<'_>) {}

    /// An update was made; `logged` is true for those that `log_every` selects.
    fn stepped(
        &mut self,
        training: &TrainingLoop,
        report: &StepReport,
        logged: bool,
    ) -> Result<(), TrainError>;

    /// The validation loss was computed.
    fn validated(
        &mut self,
        training: &TrainingLoop,
        report: &ValidationReport,
    ) -> Result<(), TrainError>;

    /// The losses of other texts were computed; `before` are the earlier ones.
    fn measured_other_text(
        &mut self,
        training: &TrainingLoop,
        before: &[OtherTextLoss],
    ) -> Result<(), TrainError>;

    /// `model` has the lowest validation loss so far. Returns whether this counts: not if it should
    /// have been saved and could not be.
    fn improved(
        &mut self,
        _training: &TrainingLoop,
        _model: &Transformer,
    ) -> Result<bool, TrainError> {
        Ok(true)
    }

    /// Update and validation of a step are done; `at_end` is true for the last step.
    fn step_ended(
        &mut self,
        _training: &mut TrainingLoop,
        _at_end: bool,
    ) -> Result<(), TrainError> {
        Ok(())
    }
}

/// How the ranks share a step.
fn division(setup: &RunSetup) -> Result<Division, TrainError> {
    let train = setup.config.train;
    let ranks = setup.group.size();
    if setup.config.preferences.is_some() && (ranks > 1 || train.lanes > 1) {
        return Err(TrainError::config(
            "preferences",
            format!(
                "a run on preferences has one rank and one lane, not {ranks} and {}",
                train.lanes
            ),
            "leave out --ranks and train.lanes",
        ));
    }
    Ok(Division::new(train.accumulation, train.lanes, ranks)?)
}

/// The state of a run before its first update.
pub(crate) fn initial_state(setup: &RunSetup) -> State {
    State {
        format: 1,
        seed: setup.config.seed,
        data: setup.data_fingerprint(),
        fingerprint: fingerprint(&setup.config),
        settings: Some(settings(&setup.config)),
        base: setup.lora.as_ref().map(|base| base.description.clone()),
        ..State::default()
    }
}

/// The last losses of other texts that `state` has.
fn last_other_text(setup: &RunSetup, state: &State) -> Vec<OtherTextLoss> {
    let texts = setup.other_texts.iter().filter_map(|text| {
        let name = text.name.clone();
        let loss = *state.last_other_text.get(&name)?;
        let start = *state.other_text.get(&name)?;
        Some(OtherTextLoss { name, loss, start })
    });
    texts.collect()
}

impl TrainingLoop {
    /// Continues the training of `model` after `state.step` updates. On several ranks, all continue with the model, the
    /// moments and the state of rank 0.
    pub(crate) fn new(setup: RunSetup, start: Start) -> Result<Self, TrainError> {
        let config = &setup.config;
        let timeout = std::time::Duration::from_secs(config.parallel.timeout);
        setup.group.set_timeout(timeout);
        division(&setup)?;
        check_agreement(&setup)?;
        let ranks = setup.group.size();
        let shards = setup
            .shards_optimizer()
            .then(|| shards_of(&start.model.clone().train(), &config.optimizer, ranks));
        let (model, optimizer, state) = share_start(&setup.group, start, shards.as_ref())?;
        let other_text = last_other_text(&setup, &state);
        let model = model.train().with_precision(config.train.precision)?;
        let (clip_norm, recompute) = (config.optimizer.clip_norm, config.train.recompute);
        let stepper = Stepper::with_optimizer(model, optimizer, clip_norm, config.seed, recompute)
            .with_shards(shards);
        Ok(Self {
            timing: Timing {
                start: Instant::now(),
                start_step: state.step,
                elapsed_before: state.elapsed,
                seconds: 0.0,
                tokens: 0,
                waited: 0.0,
            },
            setup,
            stepper,
            state,
            last_validation: None,
            other_text,
            gathered: None,
            objective: None,
            norms: Vec::new(),
        })
    }

    /// Trains until the last update, early stopping, or a request of the observer.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if a value is NaN or infinite; the errors of the observer, the data and
    /// the validation.
    pub(crate) fn run(
        &mut self,
        observer: &mut impl LoopObserver,
    ) -> Result<StopReason, TrainError> {
        let division = division(&self.setup)?;
        let micros = division.micro_batches(self.setup.group.rank());
        let micro_batches = micros.len();
        let prefetched = PREFETCH_STEPS * micro_batches;
        if self.state.step == 0 {
            // A run that was stopped right after it has them.
            let is_measured = self.other_text.len() == self.setup.other_texts.len();
            if !is_measured {
                match self.measure_other_text(observer) {
                    // The resumed run begins with it.
                    Err(TrainError::Interrupted) => return Ok(StopReason::Interrupted),
                    measured => measured?,
                }
            }
        } else if let Some(first) = self.state.unfinished {
            self.after_update(first, observer)?;
        }
        let loader = &self.setup.loader;
        let mut stream = loader.prefetch_part(self.state.step, prefetched, micros);
        while self.state.step < self.setup.config.train.steps {
            if self.should_stop_early() {
                // What a stop left out comes first. Only rank 0 knows of samples.
                let is_unfinished = self.state.unfinished.is_some();
                if !decision_of_first(&self.setup.group, is_unfinished)? {
                    self.check_same_weights()?;
                    return Ok(StopReason::EarlyStopped);
                }
            }
            let batches = stream.by_ref().take(micro_batches);
            let batches = batches.collect::<Result<Vec<_>, _>>()?;
            if batches.len() != micro_batches {
                let message = "the data loader ended before the run".to_string();
                return Err(DataError::Prefetch { message }.into());
            }
            let stop = observer.stop_requested() || self.state.unfinished.is_some();
            let agreed = StepAgreement::reach(&self.setup.group, &batches, stop)?;
            if agreed.stop {
                self.check_same_weights()?;
                return Ok(StopReason::Interrupted);
            }
            let part = self.part(&division, agreed.target_count);
            self.update(&batches, &part, observer)?;
            if self.is_at_end() {
                tracing::debug!(peak_memory = peak_memory(), "updates done");
            }
            self.after_update(AfterUpdate::Validation, observer)?;
            if self.is_first_rank_busy_at(self.state.step, self.is_at_end()) {
                self.setup.group.expect_save();
            }
        }
        Ok(match self.state.unfinished {
            Some(_) => StopReason::Interrupted,
            None => StopReason::Finished,
        })
    }

    /// Does what is due after an update, from `first` on. If a stop is requested meanwhile, the state says what is left
    /// to do, and is otherwise that before it.
    fn after_update(
        &mut self,
        first: AfterUpdate,
        observer: &mut impl LoopObserver,
    ) -> Result<(), TrainError> {
        self.state.unfinished = None;
        let at_end = self.is_at_end();
        let is_validation_due = self.is_validation_due(at_end);
        for part in [
            AfterUpdate::Validation,
            AfterUpdate::OtherText,
            AfterUpdate::Samples,
        ] {
            let done = match part {
                skipped if skipped < first => Ok(()),
                AfterUpdate::Validation if is_validation_due => self.validate(observer),
                AfterUpdate::OtherText if is_validation_due => self.measure_other_text(observer),
                AfterUpdate::Validation | AfterUpdate::OtherText => Ok(()),
                AfterUpdate::Samples => self.end_step(observer, at_end),
            };
            match done {
                Err(TrainError::Interrupted) => {
                    self.state.unfinished = Some(part);
                    return Ok(());
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Samples, probes and the periodic checkpoint, which contains the moments of all ranks.
    fn end_step(
        &mut self,
        observer: &mut impl LoopObserver,
        at_end: bool,
    ) -> Result<(), TrainError> {
        if self.is_saved_at(self.state.step) {
            self.with_moments(|training| observer.step_ended(training, at_end))
        } else {
            observer.step_ended(self, at_end)
        }
    }

    /// Whether the last update was made.
    fn is_at_end(&self) -> bool {
        self.state.step == self.setup.config.train.steps
    }

    /// Makes one update: forward, backward, clipping, optimizer, report.
    fn update(
        &mut self,
        batches: &[TokenBatch],
        part: &StepPart,
        observer: &mut impl LoopObserver,
    ) -> Result<(), TrainError> {
        let start = Instant::now();
        let step = self.state.step;
        let _span = tracing::debug_span!("step", step).entered();
        let lr = self.learning_rate(step);
        let waited_before = self.setup.group.waited();
        let found = self.gradients(batches, part)?;
        let (loss, grad_norm) = (found.loss, found.norm);
        if !found.is_finite() {
            return Err(self.diverged(batches, part, &found.gradients, lr, loss));
        }
        let max_lr = self.setup.config.schedule.learning_rate;
        let preferences = found.preferences;
        let group = &self.setup.group;
        self.stepper.update_on_ranks(found, lr, max_lr, group)?;

        self.state.step += 1;
        let tokens = match &self.objective {
            Some(objective) => objective.trained_tokens(batches),
            None => part.target_count,
        };
        self.state.tokens += tokens as u64;
        self.state.loss = Some(loss);
        self.norms.push(grad_norm);
        self.norms
            .drain(..self.norms.len().saturating_sub(NORM_HISTORY));
        self.timing.tokens += tokens as u64;
        let seconds = start.elapsed().as_secs_f64();
        self.timing.seconds += seconds;
        let waited = self.setup.group.waited().saturating_sub(waited_before);
        self.timing.waited += waited.as_secs_f64();
        tracing::debug!(loss, grad_norm, lr, ms = seconds * 1e3, "step done");
        self.report_step((loss, preferences), lr, grad_norm, observer)
    }

    /// Loss and gradients of the next update, of which this rank computes `part`.
    fn gradients(
        &self,
        batches: &[TokenBatch],
        part: &StepPart,
    ) -> Result<StepGradients, TrainError> {
        let step = self.state.step;
        let Some(objective) = &self.objective else {
            let group = &self.setup.group;
            return self.stepper.gradients_of_ranks(batches, part, step, group);
        };
        let indices = |micro| self.setup.loader.indices(step, micro);
        let pairs: Vec<_> = (0..batches.len()).map(indices).collect();
        let recompute = self.setup.config.train.recompute;
        Ok(objective.gradients(self.stepper.model(), batches, &pairs, recompute))
    }

    fn report_step(
        &mut self,
        (loss, preferences): (f64, PreferenceMetrics),
        learning_rate: f64,
        grad_norm: f64,
        observer: &mut impl LoopObserver,
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
            preferences,
            learning_rate,
            grad_norm,
            tokens_per_second,
            waited_share: (self.setup.group.size() > 1)
                .then(|| self.timing.waited / self.timing.seconds.max(1e-9)),
            eta: seconds_per_step * train.steps.saturating_sub(step) as f64,
        };
        if logged || self.is_saved_at(step) {
            self.check_same_weights()?;
        }
        observer.stepped(self, &report, logged)?;
        if logged {
            self.timing.tokens = 0;
            self.timing.seconds = 0.0;
            self.timing.waited = 0.0;
        }
        Ok(())
    }

    /// Checks that all ranks have the same weights, before rank 0 reports or saves them. All ranks must call this.
    fn check_same_weights(&self) -> Result<(), TrainError> {
        check_same_weights(&self.setup.group, self.stepper.model())
    }

    /// The part of the next step that this rank computes.
    fn part(&self, division: &Division, target_count: usize) -> StepPart {
        let (rank, rows) = (self.setup.group.rank(), self.setup.config.train.batch_size);
        StepPart::of_rank(division, rank, rows, target_count)
    }

    /// Whether there is a checkpoint of `step`.
    fn is_saved_at(&self, step: u64) -> bool {
        let every = self.setup.config.checkpoint.every;
        every > 0 && step.is_multiple_of(every)
    }

    /// Whether rank 0 does more after update `step` than the others, which wait in the meantime.
    fn is_first_rank_busy_at(&self, step: u64, at_end: bool) -> bool {
        let config = &self.setup.config;
        let every = [config.samples.every, config.probes.every];
        let is_due = |every: &u64| *every > 0 && step.is_multiple_of(*every);
        self.is_saved_at(step) || self.is_validation_due(at_end) || every.iter().any(is_due)
    }

    /// Whether early stopping applies.
    fn should_stop_early(&self) -> bool {
        let patience = self.setup.config.validation.patience;
        patience > 0 && self.state.since_best >= patience
    }

    fn is_validation_due(&self, at_end: bool) -> bool {
        let every = self.setup.config.validation.every;
        every > 0 && self.state.step.is_multiple_of(every) || at_end
    }

    /// Learning rate of update `step`, counted from 0.
    fn learning_rate(&self, step: u64) -> f64 {
        let config = &self.setup.config;
        config.schedule.learning_rate(step, config.train.steps)
    }

    /// Learning rate of the last update.
    fn last_lr(&self) -> f64 {
        self.learning_rate(self.state.step.saturating_sub(1))
    }

    /// The card of the current model.
    pub(crate) fn card(&self) -> ModelCard {
        let config = &self.setup.config;
        let vocab_size = self.setup.dataset.tokenizer.vocab_size();
        ModelCard {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            trained_on: self.setup.data_description(),
            origin: None,
            made_from: None,
            merged_change: None,
            calibrated_on: None,
            seed: config.seed,
            step: self.state.step,
            tokens: self.state.tokens,
            parameters: config.model.parameter_counts().total() as u64,
            train_loss: self.state.loss,
            validation_loss: self.state.validation,
            prompt_template: config.samples.prompt_template.clone(),
            unused_ids: config.model.vocab_size - vocab_size,
            special: self.setup.special.clone(),
            chat_templates: self.setup.chat_templates.clone(),
            template_problem: None,
        }
    }

    /// Seconds of training so far, including those before a resume.
    pub(crate) fn elapsed(&self) -> f64 {
        self.timing.elapsed_before + self.timing.start.elapsed().as_secs_f64()
    }
}
