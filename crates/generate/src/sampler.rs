//! Sampling one token from logits.

use std::borrow::Cow;
use std::collections::BTreeMap;

use nextword_kernels::exp_logits;
use nextword_model::CounterRng;

use crate::candidates::{Candidates, sample_unfiltered};
use crate::{GenerateError, SamplingConfig};

/// A sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// The token id.
    pub id: u32,
    /// Its probability after temperature and filters; 1 for greedy sampling.
    pub probability: f64,
    /// Its log-probability under the model in nats, before bias, penalties and temperature.
    pub logprob: f64,
}

/// Identifies a sampling step. Together with the seed it determines the random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    /// Index of the sequence.
    pub sequence: u64,
    /// Index of the token in the completion.
    pub position: u64,
}

/// Token counts of the prompt and the completion so far, for the penalties.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How often each token was generated; 0 for tokens that only the prompt contains.
    generated: BTreeMap<u32, u32>,
}

impl History {
    /// The history before the first generated token.
    pub fn new(prompt: &[u32]) -> Self {
        Self {
            generated: prompt.iter().map(|id| (*id, 0)).collect(),
        }
    }

    /// Adds a generated token.
    pub fn push(&mut self, id: u32) {
        *self.generated.entry(id).or_default() += 1;
    }
}

/// Samples tokens according to a [`SamplingConfig`]. Stateless: the result depends only on the
/// arguments.
///
/// # Example
///
/// ```
/// use nextword_generate::{History, SampleKey, Sampler, SamplingConfig};
///
/// let logits = [0.1f32.ln(), 0.3f32.ln(), 0.6f32.ln()];
/// let key = SampleKey { sequence: 0, position: 0 };
/// let greedy = Sampler::new(SamplingConfig::greedy())?;
/// assert_eq!(greedy.sample(&logits, &History::default(), key)?.id, 2);
///
/// let top_2 = Sampler::new(SamplingConfig { top_k: Some(2), seed: 5, ..Default::default() })?;
/// let token = top_2.sample(&logits, &History::default(), key)?;
/// assert_eq!(token, top_2.sample(&logits, &History::default(), key)?); // no hidden state
/// assert!(token.id > 0 && token.probability > 0.3); // renormalized over two tokens
/// # Ok::<(), nextword_generate::GenerateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplingConfig,
    rng: CounterRng,
}

impl Sampler {
    /// Creates a sampler with these settings.
    ///
    /// # Errors
    /// The same as [`SamplingConfig::validate`].
    pub fn new(config: SamplingConfig) -> Result<Self, GenerateError> {
        config.validate()?;
        let rng = CounterRng::new(config.seed).named("sampling");
        Ok(Self { config, rng })
    }

    /// The settings.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// Samples a token from `logits`, one value per vocabulary entry.
    ///
    /// # Errors
    /// [`GenerateError::NotFinite`] if a logit is NaN or infinity; [`GenerateError::AllTokensForbidden`]
    /// if every token is forbidden. A logit of negative infinity forbids its token.
    pub fn sample(
        &self,
        logits: &[f32],
        history: &History,
        key: SampleKey,
    ) -> Result<SampledToken, GenerateError> {
        let (id, probability) = self.sample_id(logits, history, key)?;
        Ok(SampledToken {
            id,
            probability,
            logprob: logprob(logits, id),
        })
    }

    /// Like [`sample`](Self::sample), but returns only the id and its probability.
    pub(crate) fn sample_id(
        &self,
        logits: &[f32],
        history: &History,
        key: SampleKey,
    ) -> Result<(u32, f64), GenerateError> {
        let is_invalid = |l: &f32| l.is_nan() || *l == f32::INFINITY;
        if let Some(id) = logits.iter().position(is_invalid) {
            return Err(GenerateError::NotFinite {
                id,
                value: logits[id],
            });
        }
        let adjusted = self.adjust(logits, history);
        let best = argmax(&adjusted).ok_or(GenerateError::AllTokensForbidden)?;
        if self.config.temperature <= 0.0 {
            return Ok((best as u32, 1.0));
        }
        let sampled = self.sample_adjusted(&adjusted, adjusted[best], key);
        sampled.ok_or(GenerateError::AllTokensForbidden)
    }

    /// Applies bias and penalties to `logits`.
    pub(crate) fn adjust<'a>(&self, logits: &'a [f32], history: &History) -> Cow<'a, [f32]> {
        if self.config.logit_bias.is_empty() && !self.config.has_penalties() {
            return Cow::Borrowed(logits);
        }
        let mut adjusted = logits.to_vec();
        for (id, bias) in &self.config.logit_bias {
            if let Some(logit) = adjusted.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        if self.config.has_penalties() {
            for (id, count) in &history.generated {
                if let Some(logit) = adjusted.get_mut(*id as usize) {
                    *logit = self.penalize(*logit, *count);
                }
            }
        }
        Cow::Owned(adjusted)
    }

    /// Penalizes the logit of a token that the prompt contains or that was generated `count` times.
    fn penalize(&self, logit: f32, count: u32) -> f32 {
        let mut logit = f64::from(logit);
        let repetition = self.config.repetition_penalty;
        logit = if logit < 0.0 {
            logit * repetition
        } else {
            logit / repetition
        };
        if count > 0 {
            logit -=
                self.config.presence_penalty + self.config.frequency_penalty * f64::from(count);
        }
        logit as f32
    }

    fn sample_adjusted(&self, logits: &[f32], best: f32, key: SampleKey) -> Option<(u32, f64)> {
        let config = &self.config;
        let has_filters = config.top_k.is_some_and(|k| k < logits.len())
            || config.top_p.is_some_and(|p| p < 1.0)
            || config.min_p.is_some_and(|p| p > 0.0);
        if !has_filters {
            return sample_unfiltered(logits, best, config.temperature, self.uniform(key));
        }
        let mut candidates = Candidates::new(logits, best, config.temperature);
        if let Some(k) = config.top_k {
            candidates.keep_top_k(k);
        }
        candidates.exponentiate();
        if let Some(p) = config.top_p {
            candidates.keep_top_p(p);
        }
        if let Some(p) = config.min_p {
            candidates.keep_min_p(p);
        }
        candidates.sample(self.uniform(key))
    }

    /// The random number in [0, 1) for `key`.
    pub(crate) fn uniform(&self, key: SampleKey) -> f64 {
        self.rng.stream(key.sequence).uniform(key.position)
    }
}

/// The index of the largest logit, the first one of a tie; `None` if all are forbidden.
pub(crate) fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    let mut top = f32::NEG_INFINITY;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > top {
            (best, top) = (Some(id), *logit);
        }
    }
    best
}

/// `ln(sum(exp(logits)))`; NaN if one is NaN.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    if logits.iter().any(|logit| logit.is_nan()) {
        return f64::NAN;
    }
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights = vec![0.0; logits.len()];
    exp_logits(logits, top, 1.0, &mut weights);
    f64::from(top) + weights.iter().sum::<f64>().ln()
}

/// The log-probability of token `id` under the model, in nats.
pub(crate) fn logprob(logits: &[f32], id: u32) -> f64 {
    f64::from(logits[id as usize]) - log_sum_exp(logits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(position: u64) -> SampleKey {
        SampleKey {
            sequence: 0,
            position,
        }
    }

    fn greedy(config: SamplingConfig, logits: &[f32], history: &History) -> u32 {
        let config = SamplingConfig {
            temperature: 0.0,
            ..config
        };
        Sampler::new(config)
            .unwrap()
            .sample(logits, history, at(0))
            .unwrap()
            .id
    }

    #[test]
    fn greedy_breaks_ties_by_lowest_id() {
        let logits = [1.0, 5.0, 5.0, 2.0];
        let sampler = Sampler::new(SamplingConfig::greedy()).unwrap();
        let token = sampler.sample(&logits, &History::default(), at(0)).unwrap();
        assert_eq!(
            (token.id, token.probability.to_bits()),
            (1, 1.0_f64.to_bits())
        );
    }

    #[test]
    fn samples_follow_the_probabilities() {
        let logits = [0.0, 1.0, -1.0, 2.0, 0.5, f32::NEG_INFINITY];
        let config = SamplingConfig {
            temperature: 0.8,
            seed: 5,
            ..SamplingConfig::default()
        };
        let sampler = Sampler::new(config).unwrap();
        let samples = 40_000;
        let mut counts = [0.0_f64; 6];
        for position in 0..samples {
            let token = sampler
                .sample(&logits, &History::default(), at(position))
                .unwrap();
            counts[token.id as usize] += 1.0;
        }
        let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / 0.8).exp()).collect();
        let total: f64 = weights.iter().sum();
        let chi_square: f64 = (0..5)
            .map(|i| {
                let expected = samples as f64 * weights[i] / total;
                (counts[i] - expected).powi(2) / expected
            })
            .sum();
        // 4 degrees of freedom: above 18.5 once in a thousand seeds; this seed is fixed.
        assert!(chi_square < 18.5, "{chi_square}: {counts:?}");
        assert!(counts[5] == 0.0, "a forbidden token is never sampled");
    }

    #[test]
    fn a_sample_depends_on_seed_sequence_and_position() {
        let logits = vec![0.0; 1000];
        let sample = |seed, sequence, position| {
            let config = SamplingConfig {
                seed,
                ..SamplingConfig::default()
            };
            let key = SampleKey { sequence, position };
            Sampler::new(config)
                .unwrap()
                .sample(&logits, &History::default(), key)
                .unwrap()
                .id
        };
        assert_eq!(sample(1, 2, 3), sample(1, 2, 3));
        let others = [sample(0, 2, 3), sample(1, 1, 3), sample(1, 2, 2)];
        assert!(
            others.iter().all(|other| *other != sample(1, 2, 3)),
            "{others:?}"
        );
    }

    #[test]
    fn penalties_and_bias_follow_their_definitions() {
        let config = SamplingConfig {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: [(0, 1.0), (99, 1.0)].into(),
            ..SamplingConfig::default()
        };
        let mut history = History::new(&[0, 1, 4]);
        for id in [1, 2, 2] {
            history.push(id);
        }
        let adjusted = Sampler::new(config)
            .unwrap()
            .adjust(&[1.0, 4.0, -3.0, 2.0, -1.0], &history);
        let expected: [f32; 5] = [
            2.0 / 2.0,                     // 1 + 1 of bias; prompt only, so repetition alone
            4.0 / 2.0 - 0.5 - 0.25,        // in the prompt and generated once
            -3.0 * 2.0 - 0.5 - 2.0 * 0.25, // generated twice
            2.0,                           // new
            -2.0,                          // prompt only, negative
        ];
        assert_eq!(*adjusted, expected);
    }

    #[test]
    fn bias_can_force_and_forbid() {
        let logits = [0.0, 3.0, 1.0];
        let with = |bias: f32, id: u32| SamplingConfig {
            logit_bias: [(id, bias)].into(),
            ..SamplingConfig::default()
        };
        assert_eq!(greedy(with(100.0, 0), &logits, &History::default()), 0);
        assert_eq!(
            greedy(with(f32::NEG_INFINITY, 1), &logits, &History::default()),
            2
        );
    }

    #[test]
    fn logprob_precedes_filters_and_probability_follows_them() {
        let logits = [1.0_f32.ln(), 3.0_f32.ln(), 4.0_f32.ln()];
        let config = SamplingConfig {
            top_k: Some(1),
            temperature: 0.3,
            ..SamplingConfig::default()
        };
        let token = Sampler::new(config)
            .unwrap()
            .sample(&logits, &History::default(), at(0))
            .unwrap();
        assert_eq!(token.id, 2);
        assert!((token.probability - 1.0).abs() < 1e-12);
        assert!((token.logprob - 0.5_f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn non_finite_logits_are_errors() {
        let sampler = Sampler::new(SamplingConfig::default()).unwrap();
        let sample = |logits: &[f32]| {
            sampler
                .sample(logits, &History::default(), at(0))
                .unwrap_err()
        };
        let error = sample(&[0.0, f32::NAN]);
        assert!(
            matches!(error, GenerateError::NotFinite { id: 1, .. }),
            "{error}"
        );
        let error = sample(&[f32::INFINITY, 0.0]);
        assert!(
            matches!(error, GenerateError::NotFinite { id: 0, .. }),
            "{error}"
        );
        for logits in [&[][..], &[f32::NEG_INFINITY; 3]] {
            assert!(matches!(sample(logits), GenerateError::AllTokensForbidden));
        }
    }
}
