//! Validation of a run on preferences.

use std::ops::ControlFlow;

use nextword_model::Transformer;

use super::log_probs::of_samples;
use super::{Objective, divergence};
use crate::preferences::{Tally, pair_loss, rated_loss};
use crate::{PreferenceMetrics, TrainError};

/// The result of a validation, of runs on preferences and of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evaluation {
    /// Mean loss over the held-out pairs or rated completions, or over the tokens of supervised runs.
    pub(crate) loss: f64,
    pub(crate) metrics: PreferenceMetrics,
    /// Number of targets.
    pub(crate) tokens: usize,
}

impl Objective {
    /// Whether there are held-out pairs.
    pub(crate) fn has_validation(&self) -> bool {
        self.validation.pairs() > 0
    }

    /// Evaluates at most `limit` held-out pairs (0: all), spread over them. `None` without held-out pairs. `model` is off
    /// the autodiff graph. `on_batch` is called before each batch, with the number of completions before it and of all.
    pub(crate) fn evaluate(
        &self,
        model: &Transformer,
        limit: usize,
        on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Evaluation>, TrainError> {
        let held_out = &self.validation;
        let all = held_out.pairs();
        if all == 0 {
            return Ok(None);
        }
        let used = if limit == 0 { all } else { limit.min(all) };
        let pairs: Vec<usize> = (0..used).map(|number| number * all / used).collect();
        let indices: Vec<usize> = pairs
            .iter()
            .flat_map(|pair| [2 * pair, 2 * pair + 1])
            .collect();
        let total = indices.len();
        let mut on_batch = |done| on_batch(done, total);
        let samples = &held_out.samples;
        let log_probs = of_samples(model, samples, &indices, self.batching, &mut on_batch)?;
        let scored = pairs.iter().zip(log_probs.chunks_exact(2));
        let scored: Vec<_> = scored
            .map(|(pair, values)| {
                let side = |side: usize| held_out.scored(2 * pair + side, values[side]);
                (*pair, side(0), side(1))
            })
            .collect();

        let settings = &self.settings;
        let (mut loss, mut tally, mut tokens) = (0.0, Tally::default(), 0);
        let mut estimate = None;
        if settings.loss.is_pairwise() {
            for (_, chosen, rejected) in &scored {
                loss += pair_loss(settings, *chosen, *rejected).value;
                tally.add_pair(*chosen, *rejected);
                tokens += chosen.tokens + rejected.tokens;
            }
        } else {
            let ratios = scored
                .iter()
                .map(|(_, _, mismatched)| mismatched.log_ratio());
            let divergence = divergence(ratios.sum(), used as f64);
            for (pair, completion, _) in &scored {
                let is_good = held_out.is_good(*pair);
                loss += rated_loss(settings, *completion, is_good, divergence).value;
                tally.add_rated(*completion, is_good);
                tokens += completion.tokens;
            }
            estimate = Some(divergence);
        }
        Ok(Some(Evaluation {
            loss: loss / used as f64,
            metrics: tally.metrics(settings.beta, estimate),
            tokens,
        }))
    }
}
