//! Training on preferences: loss and gradients of a step, validation, and the reference.
//!
//! The loss compares the log probabilities of whole completions with those of the reference, the model that the run
//! started from. They are computed once, before the first step.

mod evaluation;
mod log_probs;
mod reference;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use nextword_data::{Samples, TokenBatch};
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::{ForwardContext, NoProbe, Transformer};

pub(crate) use self::evaluation::Evaluation;
use self::log_probs::{Batching, of_rows, read};
pub(crate) use self::reference::ReferenceRequest;
use crate::preferences::{PreferenceSettings, ScoredCompletion, Tally, pair_loss, rated_loss};
use crate::step::read_scalars;
use crate::stepper::StepGradients;
use crate::{Gradients, RunSetup};

/// The loss of a run on preferences, with its data. There is no dropout.
#[derive(Debug)]
pub(crate) struct Objective {
    settings: PreferenceSettings,
    train: ComparedSamples,
    validation: ComparedSamples,
    batching: Batching,
}

/// Pairs of samples, 2i and 2i + 1: the chosen and the rejected completion of a prompt; for rated completions, one of
/// them, and the same prompt with the completion of another, whose log ratio estimates the divergence.
#[derive(Debug, Default)]
struct ComparedSamples {
    samples: Samples,
    /// Whether the completion of each pair is good; empty unless they are rated.
    ratings: Vec<bool>,
    /// The log probability of each sample under the reference, nats.
    reference: Vec<f32>,
}

impl ComparedSamples {
    fn pairs(&self) -> usize {
        self.samples.len() / 2
    }

    /// Sample `index` with its log probability under the model.
    fn scored(&self, index: usize, log_prob: f32) -> ScoredCompletion {
        let reference = self.reference.get(index).copied().unwrap_or(f32::NAN);
        ScoredCompletion {
            log_prob: f64::from(log_prob),
            reference: f64::from(reference),
            tokens: self.samples.trained_in(index),
        }
    }

    /// Whether the completion of `pair` is good.
    fn is_good(&self, pair: usize) -> bool {
        self.ratings.get(pair).copied().unwrap_or(false)
    }
}

/// Sums over the completions of a step.
#[derive(Default)]
struct StepSums {
    loss: f64,
    tally: Tally,
    gradients: Gradients,
}

impl Objective {
    /// The objective of a run on preferences, before the log probabilities of the reference are known.
    pub(crate) fn new(setup: &RunSetup) -> Option<Self> {
        let settings = setup.config.preferences?;
        let read = setup.conversations.as_ref()?;
        let compared = |samples: &Samples, ratings: &Vec<bool>| ComparedSamples {
            samples: samples.clone(),
            ratings: ratings.clone(),
            reference: Vec::new(),
        };
        Some(Self {
            settings,
            train: compared(&read.train, &read.ratings.train),
            validation: compared(&read.validation, &read.ratings.validation),
            batching: Batching {
                rows: setup.validation_rows(),
                max_length: setup.config.sequence_length(),
                padding_id: setup.loader.config().padding_id,
            },
        })
    }

    /// Mean loss and gradients of a step. `pairs` are those of each micro-batch (see
    /// [`Loader::indices`](nextword_data::Loader::indices)).
    pub(crate) fn gradients(
        &self,
        model: &Transformer,
        batches: &[TokenBatch],
        pairs: &[Vec<usize>],
        recompute: bool,
    ) -> StepGradients {
        let count = pairs.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        let mut sums = StepSums::default();
        let is_pairwise = self.settings.loss.is_pairwise();
        let divergence = (!is_pairwise).then(|| {
            let ratios = self.mismatched_log_ratios(&model.valid(), batches, pairs);
            divergence(ratios, count)
        });
        for (batch, pairs) in batches.iter().zip(pairs) {
            let gradients = match divergence {
                None => backward(model, batch, recompute, |log_probs| {
                    self.pair_weights(pairs, log_probs, count, &mut sums)
                }),
                Some(divergence) => {
                    let batch = every_second_row(batch, 0);
                    backward(model, &batch, recompute, |log_probs| {
                        self.rated_weights(pairs, log_probs, (divergence, count), &mut sums)
                    })
                }
            };
            sums.gradients.add(gradients);
        }
        let device = model.device().without_autodiff();
        let loss = Tensor::<1>::zeros([1], &device);
        let norm = sums.gradients.norm();
        let [_, norm] = read_scalars(loss.clone(), norm.unwrap_or(loss));
        StepGradients {
            loss: sums.loss / count,
            norm,
            gradients: sums.gradients,
            sharded: None,
            preferences: sums.tally.metrics(self.settings.beta, divergence),
        }
    }

    /// Number of targets in `batches` that are trained.
    pub(crate) fn trained_tokens(&self, batches: &[TokenBatch]) -> usize {
        let is_pairwise = self.settings.loss.is_pairwise();
        let count = |batch: &TokenBatch| {
            if is_pairwise {
                batch.target_count()
            } else {
                every_second_row(batch, 0).target_count()
            }
        };
        batches.iter().map(count).sum()
    }

    /// The sum of the log ratios of mismatched completions.
    fn mismatched_log_ratios(
        &self,
        model: &Transformer,
        batches: &[TokenBatch],
        pairs: &[Vec<usize>],
    ) -> f64 {
        let mut sum = 0.0;
        for (batch, pairs) in batches.iter().zip(pairs) {
            let log_probs = of_rows(model, &every_second_row(batch, 1));
            for (pair, log_prob) in pairs.iter().zip(log_probs) {
                sum += self.train.scored(2 * pair + 1, log_prob).log_ratio();
            }
        }
        sum
    }

    /// The derivatives of the mean loss over `count` pairs by the negative log probabilities of a micro-batch.
    fn pair_weights(
        &self,
        pairs: &[usize],
        log_probs: &[f32],
        count: f64,
        sums: &mut StepSums,
    ) -> Vec<f32> {
        let mut weights = Vec::with_capacity(log_probs.len());
        for (pair, of_pair) in pairs.iter().zip(log_probs.chunks_exact(2)) {
            let scored = |side: usize| self.train.scored(2 * pair + side, of_pair[side]);
            let (chosen, rejected) = (scored(0), scored(1));
            let loss = pair_loss(&self.settings, chosen, rejected);
            sums.loss += loss.value;
            sums.tally.add_pair(chosen, rejected);
            weights.extend(loss.slopes.map(|slope| (-slope / count) as f32));
        }
        weights
    }

    /// The same for rated completions.
    fn rated_weights(
        &self,
        pairs: &[usize],
        log_probs: &[f32],
        (divergence, count): (f64, f64),
        sums: &mut StepSums,
    ) -> Vec<f32> {
        let mut weights = Vec::with_capacity(log_probs.len());
        for (pair, log_prob) in pairs.iter().zip(log_probs) {
            let completion = self.train.scored(2 * pair, *log_prob);
            let is_good = self.train.is_good(*pair);
            let loss = rated_loss(&self.settings, completion, is_good, divergence);
            sums.loss += loss.value;
            sums.tally.add_rated(completion, is_good);
            weights.extend(loss.slopes.map(|slope| (-slope / count) as f32));
        }
        weights
    }
}

/// The estimated divergence from the reference: the mean of `count` log ratios of mismatched completions, at least 0.
fn divergence(log_ratios: f64, count: f64) -> f64 {
    (log_ratios / count).max(0.0)
}

/// The rows `offset`, `offset + 2`, … of `batch`.
fn every_second_row(batch: &TokenBatch, offset: usize) -> TokenBatch {
    let rows: Vec<usize> = (offset..batch.batch).step_by(2).collect();
    batch.select(&rows, batch.seq)
}

/// The gradients of the sum of the rows' negative log probabilities with the weights that `weights` returns for their log
/// probabilities.
fn backward(
    model: &Transformer,
    batch: &TokenBatch,
    recompute: bool,
    weights: impl FnOnce(&[f32]) -> Vec<f32>,
) -> Gradients {
    let device = model.device();
    let weighted_sum = |losses: Tensor<1>| {
        let log_probs: Vec<f32> = read(losses.clone().inner()).iter().map(|x| -x).collect();
        let weights = TensorData::new(weights(&log_probs), [batch.batch]);
        (losses * Tensor::from_data(weights, &device)).sum()
    };
    let device = model.device().without_autodiff();
    let ids = batch_tokens(batch, &device);
    let context = || batch_context(ForwardContext::<NoProbe>::inference(), batch, &device);
    let mut gradients = Gradients::default();
    if recompute {
        let targets = &batch.targets;
        model.sequence_losses_with_recompute(ids, targets, context, weighted_sum, |part| {
            gradients.add(Gradients::collect(model, part));
        });
        return gradients;
    }
    let losses = model.sequence_losses(ids, &batch.targets, &mut context());
    Gradients::collect(model, weighted_sum(losses).backward())
}
