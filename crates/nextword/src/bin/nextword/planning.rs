//! Estimates a run's size, memory, disk space and time.

use std::time::Instant;

use burn::module::Module;
use nextword_data::Baselines;
use nextword_model::{MemoryEstimate, ParameterCounts};
use nextword_train::{Optimizer, RunConfig, RunSetup, Stepper};
use serde::Serialize;

use crate::exit;

/// The estimated cost of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) device: String,
    pub(crate) parameters: Parameters,
    /// Floating-point operations per token, forward and backward.
    pub(crate) training_flops_per_token: u64,
    /// Floating-point operations per token, forward only.
    pub(crate) forward_flops_per_token: u64,
    pub(crate) memory_bytes: Memory,
    #[serde(skip)]
    pub(crate) estimate: MemoryEstimate,
    pub(crate) checkpoint_bytes: u64,
    /// Size of all checkpoints and both models on disk at the end of the run.
    pub(crate) disk_bytes: u64,
    pub(crate) data: Data,
    /// Validation losses of n-gram baselines; absent without validation data.
    pub(crate) baselines: Option<BaselineLosses>,
    /// Absent unless steps were timed.
    pub(crate) measured: Option<Measured>,
}

/// Parameters by part.
#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    pub(crate) total: usize,
    pub(crate) token_embedding: usize,
    pub(crate) position_embedding: usize,
    pub(crate) attention: usize,
    pub(crate) feed_forward: usize,
    pub(crate) norm: usize,
    pub(crate) head: usize,
}

/// Bytes by part.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) total: usize,
    pub(crate) weights: usize,
    pub(crate) gradients: usize,
    pub(crate) optimizer: usize,
    pub(crate) activations: usize,
}

/// The training data and how much of it the run uses.
#[derive(Debug, Serialize)]
pub(crate) struct Data {
    pub(crate) train_tokens: usize,
    pub(crate) validation_tokens: usize,
    pub(crate) vocab_size: usize,
    pub(crate) steps: u64,
    pub(crate) tokens_per_step: usize,
    /// Number of passes over the training data.
    pub(crate) epochs: f64,
}

/// Losses in nats per token.
#[derive(Debug, Serialize)]
pub(crate) struct BaselineLosses {
    pub(crate) uniform: f64,
    pub(crate) unigram: f64,
    pub(crate) bigram: f64,
}

/// Measured speed.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) steps: u64,
    /// Loss of the first step: close to the uniform baseline unless weights were loaded.
    pub(crate) first_loss: f64,
    pub(crate) tokens_per_second: f64,
    pub(crate) flops_per_second: f64,
    /// Estimated seconds of all training steps.
    pub(crate) training_seconds: f64,
    /// Estimated seconds of all validations.
    pub(crate) validation_seconds: f64,
}

impl From<ParameterCounts> for Parameters {
    fn from(counts: ParameterCounts) -> Self {
        Self {
            total: counts.total(),
            token_embedding: counts.token_embedding,
            position_embedding: counts.position_embedding,
            attention: counts.attention,
            feed_forward: counts.feed_forward,
            norm: counts.norm,
            head: counts.head,
        }
    }
}

impl Parameters {
    /// Returns the parts by name, except those that the model does not have.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        [
            ("token embedding", self.token_embedding),
            ("position embedding", self.position_embedding),
            ("attention", self.attention),
            ("feed-forward", self.feed_forward),
            ("norms", self.norm),
            ("output layer", self.head),
        ]
        .into_iter()
        .filter(|(_, n)| *n > 0)
    }
}

impl Plan {
    /// Estimates from the configuration and the data alone.
    pub(crate) fn estimate(setup: &RunSetup) -> Self {
        let config = &setup.config;
        let model = &config.model;
        let seq = model.context_length;
        let moments = Optimizer::state_per_parameter(&config.optimizer);
        let estimate = model.training_memory(
            config.train.batch_size,
            seq,
            moments,
            config.train.recompute,
        );
        let weights = estimate.weights as u64;
        let checkpoint_bytes = weights + estimate.optimizer as u64;
        Self {
            name: config.name.clone(),
            device: config.device.clone(),
            parameters: model.parameter_counts().into(),
            training_flops_per_token: model.training_flops(seq) as u64,
            forward_flops_per_token: model.forward_flops(seq) as u64,
            memory_bytes: Memory {
                total: estimate.total(),
                weights: estimate.weights,
                gradients: estimate.gradients,
                optimizer: estimate.optimizer,
                activations: estimate.activations,
            },
            estimate,
            checkpoint_bytes,
            disk_bytes: checkpoint_bytes * retained_checkpoints(config) + 2 * weights,
            data: Data::from_setup(setup),
            baselines: None,
            measured: None,
        }
    }

    /// Adds the losses of n-gram baselines on this data.
    pub(crate) fn with_baselines(mut self, setup: &RunSetup) -> anyhow::Result<Self> {
        let data = &setup.dataset;
        if data.validation.len() >= 2 {
            let vocab_size = data.tokenizer.vocab_size();
            let losses = Baselines::compute(&data.train, &data.validation, vocab_size)?;
            self.baselines = Some(BaselineLosses {
                uniform: losses.uniform,
                unigram: losses.unigram,
                bigram: losses.bigram,
            });
        }
        Ok(self)
    }

    /// Adds the speed of `steps` training steps, timed after one warm-up step.
    pub(crate) fn with_speed(mut self, setup: &RunSetup, steps: u64) -> anyhow::Result<Self> {
        if steps == 0 {
            return Ok(self);
        }
        let config = &setup.config;
        let model = setup.initial_model()?.train();
        let model = model.with_precision(config.train.precision)?;
        let mut stepper =
            Stepper::new(model, config.optimizer, config.seed, config.train.recompute);
        let (mut start, mut first_loss) = (Instant::now(), f64::NAN);
        for step in 0..=steps {
            let batches = (0..config.train.accumulation)
                .map(|micro| setup.loader.batch(step, micro))
                .collect::<Result<Vec<_>, _>>()?;
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
            return Err(exit::usage(format!(
                "the loss of the first step is {first_loss}; hint: check model.init and the model's sizes"
            )));
        }
        let tokens_per_second = self.data.tokens_per_step as f64 / per_step.max(1e-12);
        self.measured = Some(Measured {
            steps,
            first_loss,
            tokens_per_second,
            flops_per_second: tokens_per_second * self.training_flops_per_token as f64,
            training_seconds: per_step * config.train.steps as f64,
            validation_seconds: validation_seconds(setup, &model.valid().in_f32())?,
        });
        Ok(self)
    }
}

impl Data {
    fn from_setup(setup: &RunSetup) -> Self {
        let config = &setup.config;
        let train_tokens = setup.dataset.train.len();
        let tokens_per_step = setup.loader.sequences_per_step() * config.model.context_length;
        let trained_tokens = tokens_per_step as f64 * config.train.steps as f64;
        Self {
            train_tokens,
            validation_tokens: setup.dataset.validation.len(),
            vocab_size: config.model.vocab_size,
            steps: config.train.steps,
            tokens_per_step,
            epochs: trained_tokens / train_tokens.max(1) as f64,
        }
    }
}

/// Returns the number of checkpoints on disk at the end of the run, as `checkpoint::prune` leaves them:
/// the newest `keep_last`, and of the older ones those at multiples of `keep_every`.
fn retained_checkpoints(config: &RunConfig) -> u64 {
    let (steps, checkpoint) = (config.train.steps, config.checkpoint);
    // One at each multiple of `every`, and one at the last step.
    let saved = match checkpoint.every {
        0 => 1,
        every => steps.div_ceil(every),
    };
    let newest = saved.min(checkpoint.keep_last as u64);
    // The last step is among the newest, so all older ones are at multiples of `every`.
    let older = saved - newest;
    let permanent = match checkpoint.keep_every {
        0 => 0,
        keep_every => older / (keep_every / gcd(keep_every, checkpoint.every)),
    };
    newest + permanent
}

/// Returns the greatest common divisor.
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Estimates the seconds of all validations of the run from two of their batches.
fn validation_seconds(
    setup: &RunSetup,
    model: &nextword_model::Transformer,
) -> anyhow::Result<f64> {
    let config = setup.config.validation;
    let Some(windows) = &setup.validation else {
        return Ok(0.0);
    };
    let sample = windows.len().min(2 * config.batch_size);
    // The first pass warms up.
    nextword_eval::evaluate(model, &windows.clone().limit(sample), config.batch_size)?;
    let start = Instant::now();
    nextword_eval::evaluate(model, &windows.clone().limit(sample), config.batch_size)?;
    let once = start.elapsed().as_secs_f64() * windows.len() as f64 / sample as f64;
    let validations = match config.every {
        0 => 1,
        every => setup.config.train.steps.div_ceil(every),
    };
    Ok(once * validations as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoints(steps: u64, every: u64, keep_last: usize, keep_every: u64) -> RunConfig {
        let mut config = RunConfig::default();
        config.train.steps = steps;
        config.checkpoint.every = every;
        config.checkpoint.keep_last = keep_last;
        config.checkpoint.keep_every = keep_every;
        config
    }

    #[test]
    fn retained_checkpoints_are_counted_once() {
        for (keep_every, expected) in [
            (0, 2),
            (500, 3), // 500, 900, 1000
            (150, 4), // 300, 600, 900, 1000
            (1, 10),
            (5000, 2),
        ] {
            let config = checkpoints(1000, 100, 2, keep_every);
            assert_eq!(retained_checkpoints(&config), expected, "{keep_every}");
        }
        assert_eq!(retained_checkpoints(&checkpoints(1000, 0, 2, 1)), 1);
    }

    /// Simulates which checkpoints the trainer saves and `prune` keeps.
    #[test]
    fn retained_checkpoints_match_a_simulated_run() {
        for steps in 1..=24_u64 {
            for every in 0..=7_u64 {
                let mut saved: Vec<u64> = (1..=steps)
                    .filter(|step| *step == steps || every > 0 && step.is_multiple_of(every))
                    .collect();
                saved.reverse();
                for keep_last in 1..=3_usize {
                    for keep_every in 0..=9_u64 {
                        let permanent = saved.iter().skip(keep_last);
                        let permanent = permanent
                            .filter(|step| keep_every > 0 && step.is_multiple_of(keep_every));
                        let expected = saved.len().min(keep_last) + permanent.count();
                        let config = checkpoints(steps, every, keep_last, keep_every);
                        assert_eq!(
                            retained_checkpoints(&config),
                            expected as u64,
                            "{steps} steps, {every}, {keep_last}, {keep_every}"
                        );
                    }
                }
            }
        }
    }
}
