//! Trace of one sampling step: every candidate, and the filter that removed it.

use serde::{Deserialize, Serialize};

use crate::candidates::Candidates;
use crate::sampler::argmax;
use crate::{GenerateError, History, SampleKey, SampledToken, Sampler};

/// The setting that removes a token before sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The logit is negative infinity.
    Forbidden,
    /// Outside the k most probable tokens.
    TopK,
    /// Outside the nucleus of total probability p.
    TopP,
    /// Below `min_p` times the top token's probability.
    MinP,
    /// The temperature is 0 and the token is not the most probable one.
    Greedy,
}

/// A token of the vocabulary in a sampling step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TracedCandidate {
    /// The token id.
    pub id: u32,
    /// The model's logit.
    pub logit: f32,
    /// The logit after bias and penalties.
    pub adjusted: f32,
    /// The probability before any filter, at the configured temperature (at 1 if that is 0).
    pub probability: f64,
    /// The filter that removed the token.
    #[serde(rename = "cut")]
    pub removed_by: Option<Filter>,
    /// The probability after all filters; 0 if the token was removed.
    #[serde(rename = "share")]
    pub final_probability: f64,
    /// The sum of `final_probability` over all lower ids. The token is sampled if the random number
    /// is in `cumulative..cumulative + final_probability`.
    #[serde(rename = "from")]
    pub cumulative: f64,
}

/// A sampling step with everything that led to the sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingTrace {
    /// Every token of the vocabulary, in id order.
    pub candidates: Vec<TracedCandidate>,
    /// The random number in [0, 1); `None` at temperature 0.
    pub uniform: Option<f64>,
    /// The result, the same as that of [`Sampler::sample`].
    pub sampled: SampledToken,
}

impl Sampler {
    /// Like [`sample`](Self::sample), with everything that led to the result.
    ///
    /// # Errors
    /// The same as [`sample`](Self::sample).
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_generate::{Filter, History, SampleKey, Sampler, SamplingConfig};
    ///
    /// let sampler = Sampler::new(SamplingConfig { top_p: Some(0.8), ..Default::default() })?;
    /// let logits = [0.1f32.ln(), 0.3f32.ln(), 0.6f32.ln()];
    /// let key = SampleKey { sequence: 0, position: 0 };
    /// let trace = sampler.trace(&logits, &History::default(), key)?;
    /// assert_eq!(trace.candidates[0].removed_by, Some(Filter::TopP));
    /// assert!((trace.candidates[2].probability - 0.6).abs() < 1e-6);
    /// assert!((trace.candidates[2].final_probability - 0.6 / 0.9).abs() < 1e-6);
    /// # Ok::<(), nextword_generate::GenerateError>(())
    /// ```
    pub fn trace(
        &self,
        logits: &[f32],
        history: &History,
        key: SampleKey,
    ) -> Result<SamplingTrace, GenerateError> {
        let sampled = self.sample(logits, history, key)?;
        let adjusted = self.adjust(logits, history);
        let best = argmax(&adjusted).ok_or(GenerateError::AllTokensForbidden)?;
        let config = self.config();
        let greedy = config.temperature <= 0.0;
        let temperature = if greedy { 1.0 } else { config.temperature };
        let mut remaining = Candidates::new(&adjusted, adjusted[best], temperature);
        let all = {
            let mut all = remaining.clone();
            all.exponentiate();
            all
        };
        let mut candidates: Vec<TracedCandidate> = (0_u32..)
            .zip(logits.iter().zip(adjusted.iter()))
            .map(|(id, (logit, adjusted))| TracedCandidate {
                id,
                logit: *logit,
                adjusted: *adjusted,
                probability: 0.0,
                removed_by: Some(Filter::Forbidden),
                final_probability: 0.0,
                cumulative: 0.0,
            })
            .collect();
        for (id, probability) in all.probabilities() {
            let candidate = &mut candidates[id as usize];
            (candidate.probability, candidate.removed_by) = (probability, Some(Filter::Greedy));
        }
        if greedy {
            let best = &mut candidates[best];
            (best.removed_by, best.final_probability) = (None, 1.0);
        } else {
            mark_remaining(&mut candidates, &remaining, Filter::TopK);
            if let Some(k) = config.top_k {
                remaining.keep_top_k(k);
            }
            mark_remaining(&mut candidates, &remaining, Filter::TopP);
            remaining.exponentiate();
            if let Some(p) = config.top_p {
                remaining.keep_top_p(p);
            }
            mark_remaining(&mut candidates, &remaining, Filter::MinP);
            if let Some(p) = config.min_p {
                remaining.keep_min_p(p);
            }
            for (id, probability) in remaining.probabilities() {
                let candidate = &mut candidates[id as usize];
                (candidate.removed_by, candidate.final_probability) = (None, probability);
            }
        }
        let mut sum = 0.0;
        for candidate in &mut candidates {
            candidate.cumulative = sum;
            sum += candidate.final_probability;
        }
        Ok(SamplingTrace {
            candidates,
            uniform: (!greedy).then(|| self.uniform(key)),
            sampled,
        })
    }
}

/// Marks the remaining tokens as removed by `next`, the filter that runs next.
fn mark_remaining(candidates: &mut [TracedCandidate], remaining: &Candidates, next: Filter) {
    for id in remaining.ids() {
        candidates[id as usize].removed_by = Some(next);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::SamplingConfig;

    #[test]
    fn trace_equals_sampling() {
        let logits = [2.0, 1.0, 0.5, -1.0, f32::NEG_INFINITY, 1.5];
        for position in 0..200 {
            let config = SamplingConfig {
                temperature: 0.7,
                top_k: Some(4),
                top_p: Some(0.9),
                min_p: Some(0.05),
                seed: position % 7,
                ..SamplingConfig::default()
            };
            let sampler = Sampler::new(config).unwrap();
            let key = SampleKey {
                sequence: 0,
                position,
            };
            let trace = sampler.trace(&logits, &History::default(), key).unwrap();
            let u = trace.uniform.unwrap();
            let hit = trace
                .candidates
                .iter()
                .find(|c| c.final_probability > 0.0 && u < c.cumulative + c.final_probability)
                .unwrap();
            assert_eq!(hit.id, trace.sampled.id);
            assert!((hit.final_probability - trace.sampled.probability).abs() < 1e-12);
            let total: f64 = trace.candidates.iter().map(|c| c.final_probability).sum();
            assert!((total - 1.0).abs() < 1e-12);
            assert_eq!(trace.candidates[4].removed_by, Some(Filter::Forbidden));
            assert_eq!(trace.candidates[3].removed_by, Some(Filter::TopK));
            assert_eq!(trace.candidates[0].removed_by, None);
        }
    }

    #[test]
    fn greedy_trace_keeps_only_the_top_token() {
        let sampler = Sampler::new(SamplingConfig::greedy()).unwrap();
        let key = SampleKey {
            sequence: 0,
            position: 0,
        };
        let trace = sampler
            .trace(&[0.0, 1.0], &History::default(), key)
            .unwrap();
        assert_eq!((trace.sampled.id, trace.uniform), (1, None));
        assert_eq!(trace.candidates[0].removed_by, Some(Filter::Greedy));
        assert!((trace.candidates[1].probability - 0.731_058_578_6).abs() < 1e-9);
    }
}
