//! Measures the speed of a run's first steps.

use std::time::Instant;

use burn::module::Module;
use nextword_data::EvalWindows;
use nextword_model::Transformer;
use serde::{Deserialize, Serialize};

use super::Plan;
use crate::{RunConfig, RunSetup, Stepper, TrainError};

/// Speed of a run, measured on its own batches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredSpeed {
    /// Number of steps that were timed; of a step with several micro-batches, one of them may have been
    /// enough. 0 if only a part of a micro-batch was timed.
    pub steps: u64,
    /// Number of tokens that were timed at once.
    #[serde(default)]
    pub tokens: usize,
    /// Loss of the first step: close to the uniform baseline unless weights were loaded.
    pub first_loss: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// Floating-point operations per second.
    pub flops_per_second: f64,
    /// Estimated seconds of all training steps.
    pub training_seconds: f64,
    /// Estimated seconds of all validations, also of the texts of `validation.also`.
    pub validation_seconds: f64,
}

impl Plan {
    /// Adds the speed of `steps` training steps, timed after one warm-up step; 0 measures nothing. The
    /// steps update a copy of the model that is dropped.
    ///
    /// # Errors
    /// [`TrainError::FirstLoss`] if the loss of the first step is not finite, and errors of data and
    /// model.
    pub fn with_speed(mut self, setup: &RunSetup, steps: u64) -> Result<Self, TrainError> {
        if steps == 0 {
            return Ok(self);
        }
        let config = &setup.config;
        let model = setup.initial_model()?.train();
        let model = model.with_precision(config.train.precision)?;
        let mut stepper =
            Stepper::new(model, config.optimizer, config.seed, config.train.recompute);
        let (mut start, mut first_loss, mut tokens) = (Instant::now(), f64::NAN, 0);
        for step in 0..=steps {
            let batches = (0..config.train.accumulation)
                .map(|micro| setup.loader.batch(step, micro))
                .collect::<Result<Vec<_>, _>>()?;
            tokens = batches.first().map_or(0, |batch| batch.inputs.len());
            let lr = config.schedule.learning_rate(step, config.train.steps);
            // Reading the loss waits for the device.
            let loss = stepper.step(&batches, step, lr, config.schedule.learning_rate);
            if step == 0 {
                (start, first_loss) = (Instant::now(), loss);
            }
        }
        let model = stepper.model();
        let _ = model.device().sync();
        let per_step = start.elapsed().as_secs_f64() / steps as f64;
        if !first_loss.is_finite() {
            return Err(TrainError::FirstLoss { loss: first_loss });
        }
        let tokens_per_second = self.data.tokens_per_step as f64 / per_step.max(1e-12);
        self.measured = Some(MeasuredSpeed {
            steps,
            tokens,
            first_loss,
            tokens_per_second,
            flops_per_second: tokens_per_second * self.training_flops_per_token as f64,
            training_seconds: per_step * config.train.steps as f64,
            validation_seconds: validation_seconds(setup, &model.valid().in_f32())?,
        });
        Ok(self)
    }
}

/// Estimates the seconds of all validations of the run, and of the texts of `validation.also`, from two batches of each.
fn validation_seconds(setup: &RunSetup, model: &Transformer) -> Result<f64, TrainError> {
    let rows = setup.validation_rows();
    let mut seconds = 0.0;
    for (windows, times) in evaluations(setup) {
        let sample = windows.clone().limit(windows.len().min(2 * rows));
        // The first pass warms up.
        nextword_eval::evaluate(model, &sample, rows)?;
        let start = Instant::now();
        nextword_eval::evaluate(model, &sample, rows)?;
        let once = start.elapsed().as_secs_f64() * windows.len() as f64 / sample.len() as f64;
        seconds += once * times as f64;
    }
    Ok(seconds)
}

/// What a run evaluates, and how often: held-out data at each validation, other texts also before the first step.
pub(super) fn evaluations(setup: &RunSetup) -> impl Iterator<Item = (&EvalWindows, u64)> {
    let validations = validations(&setup.config);
    let held_out = setup.validation.iter();
    let held_out = held_out.map(move |windows| (windows, validations));
    let others = setup.other_texts.iter();
    let others = others.map(move |text| (&text.windows, validations + 1));
    let all = held_out.chain(others);
    all.filter(|(windows, _)| !windows.is_empty())
}

/// The number of validations of a run.
fn validations(config: &RunConfig) -> u64 {
    match config.validation.every {
        0 => 1,
        every => config.train.steps.div_ceil(every),
    }
}
