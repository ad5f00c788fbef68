//! What a run will take, in numbers.

use std::time::Instant;

use burn::module::Module;
use nextword_data::Baselines;
use nextword_model::{Counts, MemoryEstimate};
use nextword_train::{Ingredients, Optimizer, RunConfig, Stepper};
use serde::Serialize;

use crate::exit;

/// What a run will take.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) device: String,
    pub(crate) parameters: Parameters,
    /// Floating-point operations of one token, forward and backward.
    pub(crate) training_flops_per_token: u64,
    /// Floating-point operations of one token, forward only.
    pub(crate) forward_flops_per_token: u64,
    pub(crate) memory_bytes: Memory,
    #[serde(skip)]
    pub(crate) estimate: MemoryEstimate,
    pub(crate) checkpoint_bytes: u64,
    /// All that the run keeps at its end: checkpoints and both records.
    pub(crate) disk_bytes: u64,
    pub(crate) data: Data,
    /// Nats a token that counting alone reaches; absent without validation data.
    pub(crate) baselines: Option<BaselineLosses>,
    /// Absent unless steps were made.
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

/// What the run sees.
#[derive(Debug, Serialize)]
pub(crate) struct Data {
    pub(crate) train_tokens: usize,
    pub(crate) validation_tokens: usize,
    pub(crate) vocab_size: usize,
    pub(crate) steps: u64,
    pub(crate) tokens_per_step: usize,
    /// How often the run sees its training data.
    pub(crate) epochs: f64,
}

/// Nats a token.
#[derive(Debug, Serialize)]
pub(crate) struct BaselineLosses {
    pub(crate) uniform: f64,
    pub(crate) unigram: f64,
    pub(crate) bigram: f64,
}

/// What real steps took.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) steps: u64,
    /// The loss of the first of them: near that of a uniform guess unless weights were loaded.
    pub(crate) first_loss: f64,
    pub(crate) tokens_per_second: f64,
    pub(crate) flops_per_second: f64,
    /// Seconds of all training steps.
    pub(crate) training_seconds: f64,
    /// Seconds of all validations.
    pub(crate) validation_seconds: f64,
}

impl From<Counts> for Parameters {
    fn from(counts: Counts) -> Self {
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
    /// The parts by name, without those that the model does not have.
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
    /// What the configuration and the data alone tell.
    pub(crate) fn of(ingredients: &Ingredients) -> Self {
        let config = &ingredients.config;
        let model = &config.model;
        let seq = model.context_length;
        let moments = Optimizer::numbers_per_parameter(&config.optimizer);
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
            parameters: model.counts().into(),
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
            disk_bytes: checkpoint_bytes * kept_checkpoints(config) + 2 * weights,
            data: Data::of(ingredients),
            baselines: None,
            measured: None,
        }
    }

    /// With the losses that counting reaches on this data.
    pub(crate) fn with_baselines(mut self, ingredients: &Ingredients) -> anyhow::Result<Self> {
        let data = &ingredients.dataset;
        if data.validation.len() >= 2 {
            let vocab_size = data.tokenizer.vocab_size();
            let losses = Baselines::measure(&data.train, &data.validation, vocab_size)?;
            self.baselines = Some(BaselineLosses {
                uniform: losses.uniform,
                unigram: losses.unigram,
                bigram: losses.bigram,
            });
        }
        Ok(self)
    }

    /// With the speed of `steps` real steps, after one that warms up.
    pub(crate) fn with_speed(
        mut self,
        ingredients: &Ingredients,
        steps: u64,
    ) -> anyhow::Result<Self> {
        if steps == 0 {
            return Ok(self);
        }
        let config = &ingredients.config;
        let model = ingredients.first_model()?.train();
        let model = model.with_precision(config.train.precision)?;
        let mut stepper =
            Stepper::new(model, config.optimizer, config.seed, config.train.recompute);
        let (mut begin, mut first_loss) = (Instant::now(), f64::NAN);
        for step in 0..=steps {
            let batches = (0..config.train.accumulation)
                .map(|micro| ingredients.loader.batch(step, micro))
                .collect::<Result<Vec<_>, _>>()?;
            let rate = config.schedule.learning_rate(step, config.train.steps);
            // The loss is read from the device, which waits for it.
            let loss = stepper.step(&batches, step, rate, config.schedule.learning_rate);
            if step == 0 {
                (begin, first_loss) = (Instant::now(), loss);
            }
        }
        let model = stepper.model();
        let _ = model.device().sync();
        let per_step = begin.elapsed().as_secs_f64() / steps as f64;
        if !first_loss.is_finite() {
            return Err(exit::usage(format!(
                "the first step gives a loss of {first_loss}; hint: look at model.init and the model's sizes"
            )));
        }
        let tokens_per_second = self.data.tokens_per_step as f64 / per_step.max(1e-12);
        self.measured = Some(Measured {
            steps,
            first_loss,
            tokens_per_second,
            flops_per_second: tokens_per_second * self.training_flops_per_token as f64,
            training_seconds: per_step * config.train.steps as f64,
            validation_seconds: validation_seconds(ingredients, &model.valid().in_f32())?,
        });
        Ok(self)
    }
}

impl Data {
    fn of(ingredients: &Ingredients) -> Self {
        let config = &ingredients.config;
        let train_tokens = ingredients.dataset.train.len();
        let tokens_per_step = ingredients.loader.sequences_per_step() * config.model.context_length;
        let seen = tokens_per_step as f64 * config.train.steps as f64;
        Self {
            train_tokens,
            validation_tokens: ingredients.dataset.validation.len(),
            vocab_size: config.model.vocab_size,
            steps: config.train.steps,
            tokens_per_step,
            epochs: seen / train_tokens.max(1) as f64,
        }
    }
}

/// Checkpoints on the disk at the run's end: the last ones, and those that are kept for good.
fn kept_checkpoints(config: &RunConfig) -> u64 {
    let (steps, checkpoint) = (config.train.steps, config.checkpoint);
    let made = match checkpoint.every {
        0 => 1,
        every => steps.div_ceil(every),
    };
    let for_good = match checkpoint.keep_every {
        0 => 0,
        keep => steps / keep,
    };
    made.min(checkpoint.keep_last as u64 + for_good)
}

/// Seconds of all validations of the run, from a few of their batches.
fn validation_seconds(
    ingredients: &Ingredients,
    model: &nextword_model::Transformer,
) -> anyhow::Result<f64> {
    let config = ingredients.config.validation;
    let Some(windows) = &ingredients.validation else {
        return Ok(0.0);
    };
    let few = windows.len().min(2 * config.batch_size);
    // The first pass warms up.
    nextword_eval::evaluate(model, &windows.clone().limit(few), config.batch_size)?;
    let begin = Instant::now();
    nextword_eval::evaluate(model, &windows.clone().limit(few), config.batch_size)?;
    let once = begin.elapsed().as_secs_f64() * windows.len() as f64 / few as f64;
    let times = match config.every {
        0 => 1,
        every => ingredients.config.train.steps.div_ceil(every),
    };
    Ok(once * times as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_that_are_kept_are_never_more_than_were_made() {
        let mut config = RunConfig::default();
        config.train.steps = 1000;
        config.checkpoint.every = 100;
        config.checkpoint.keep_last = 2;
        assert_eq!(kept_checkpoints(&config), 2);
        config.checkpoint.keep_every = 500;
        assert_eq!(kept_checkpoints(&config), 4);
        config.checkpoint.keep_every = 1;
        assert_eq!(kept_checkpoints(&config), 10);
        config.checkpoint.every = 0;
        assert_eq!(kept_checkpoints(&config), 1);
    }
}
