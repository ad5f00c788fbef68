//! The tokens that can be sampled, filtered by top-k, top-p and min-p.
//!
//! No filter sorts the whole vocabulary: top-k selects, top-p sorts the most probable tokens in
//! growing chunks until their sum reaches p, min-p compares.

use std::cmp::Ordering;

use nextword_kernels::{exp_logits, exp_nonpositive};

/// A token with its unnormalized probability.
#[derive(Clone, Copy, Debug)]
struct WeightedToken {
    id: u32,
    /// `(logit - max_logit) / temperature`, at most 0.
    scaled_logit: f64,
    /// `exp(scaled_logit)`: the unnormalized probability, 1 for the most probable token.
    weight: f64,
}

/// Orders by falling probability, ties by rising id.
fn by_probability(a: &WeightedToken, b: &WeightedToken) -> Ordering {
    b.scaled_logit
        .total_cmp(&a.scaled_logit)
        .then(a.id.cmp(&b.id))
}

/// The tokens that passed the filters so far.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    tokens: Vec<WeightedToken>,
}

impl Candidates {
    /// All tokens with a finite logit. `temperature` must be positive.
    pub(crate) fn new(logits: &[f32], max_logit: f32, temperature: f64) -> Self {
        let max_logit = f64::from(max_logit);
        let tokens = (0_u32..).zip(logits).filter(|(_, logit)| logit.is_finite());
        let tokens = tokens.map(|(id, logit)| {
            let scaled_logit = (f64::from(*logit) - max_logit) / temperature;
            WeightedToken {
                id,
                scaled_logit,
                weight: 0.0,
            }
        });
        Self {
            tokens: tokens.collect(),
        }
    }

    /// Keeps the `k` most probable tokens.
    pub(crate) fn keep_top_k(&mut self, k: usize) {
        if k < self.tokens.len() {
            self.tokens.select_nth_unstable_by(k, by_probability);
            self.tokens.truncate(k);
        }
    }

    /// Computes the weights. Call after `keep_top_k` and before everything else.
    pub(crate) fn exponentiate(&mut self) {
        for token in &mut self.tokens {
            token.weight = exp_nonpositive(token.scaled_logit);
        }
    }

    /// Keeps the smallest set of most probable tokens whose total probability reaches `p`.
    pub(crate) fn keep_top_p(&mut self, p: f64) {
        if p >= 1.0 {
            return;
        }
        let threshold = p * self.total_weight();
        let (mut sorted, mut chunk_len, mut sum) = (0, 64, 0.0);
        while sorted < self.tokens.len() {
            let rest = &mut self.tokens[sorted..];
            if chunk_len < rest.len() {
                rest.select_nth_unstable_by(chunk_len, by_probability);
            }
            let count = chunk_len.min(rest.len());
            rest[..count].sort_unstable_by(by_probability);
            for (i, token) in rest[..count].iter().enumerate() {
                sum += token.weight;
                if sum >= threshold {
                    self.tokens.truncate(sorted + i + 1);
                    return;
                }
            }
            sorted += count;
            chunk_len *= 4;
        }
    }

    /// Keeps tokens with at least `p` times the largest probability.
    pub(crate) fn keep_min_p(&mut self, p: f64) {
        self.tokens.retain(|token| token.weight >= p);
    }

    /// Samples by inverting the cumulative distribution in id order at `u` in [0, 1). Returns the
    /// token and its probability, `None` without tokens.
    pub(crate) fn sample(mut self, u: f64) -> Option<(u32, f64)> {
        self.tokens.sort_unstable_by_key(|token| token.id); // already sorted if no filter moved any
        let total = self.total_weight();
        let mut sum = 0.0;
        let sampled = self.tokens.iter().find(|token| {
            sum += token.weight;
            sum > u * total
        });
        // Rounding can leave the total slightly below `u * total`.
        let sampled = sampled.or_else(|| self.tokens.iter().rfind(|token| token.weight > 0.0))?;
        Some((sampled.id, sampled.weight / total))
    }

    fn total_weight(&self) -> f64 {
        self.tokens.iter().map(|token| token.weight).sum()
    }

    /// The remaining ids, sorted.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.tokens.iter().map(|token| token.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Ids and probabilities of the remaining tokens, sorted by id.
    pub(crate) fn probabilities(&self) -> Vec<(u32, f64)> {
        let total = self.total_weight();
        let probability = |token: &WeightedToken| (token.id, token.weight / total);
        let mut probabilities: Vec<(u32, f64)> = self.tokens.iter().map(probability).collect();
        probabilities.sort_unstable_by_key(|(id, _)| *id);
        probabilities
    }
}

/// [`Candidates::sample`] without filters, in one pass over the vocabulary.
pub(crate) fn sample_unfiltered(
    logits: &[f32],
    max_logit: f32,
    temperature: f64,
    u: f64,
) -> Option<(u32, f64)> {
    let mut sums = vec![0.0; logits.len()];
    exp_logits(logits, max_logit, temperature, &mut sums);
    let mut total = 0.0;
    for weight in &mut sums {
        total += *weight;
        *weight = total;
    }
    if total <= 0.0 {
        return None;
    }
    let sampled = sums.partition_point(|sum| *sum <= u * total);
    // Rounding can raise `u * total` to the total.
    let id = sampled.min(sums.partition_point(|sum| *sum < total));
    let weight = exp_nonpositive((f64::from(logits[id]) - f64::from(max_logit)) / temperature);
    Some((id as u32, weight / total))
}

#[cfg(test)]
mod tests {
    use nextword_model::CounterRng;

    use super::*;

    /// Logits on a coarse grid, so that ties are common.
    fn logits(case: u64) -> Vec<f32> {
        let rng = CounterRng::new(11).stream(case);
        let n = 1 + rng.at(0) % 700;
        let grid = [1.0, 4.0, 1000.0][(case % 3) as usize];
        (1..=n)
            .map(|i| ((rng.normal(i) * 2.0 * grid).round() / grid) as f32)
            .collect()
    }

    fn candidates(logits: &[f32], temperature: f64) -> Candidates {
        let max_logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Candidates::new(logits, max_logit, temperature)
    }

    /// The reference: a softmax, then a full sort.
    fn ranked(logits: &[f32], temperature: f64) -> Vec<(u32, f64)> {
        let exp: Vec<f64> = logits
            .iter()
            .map(|l| (f64::from(*l) / temperature).exp())
            .collect();
        let sum: f64 = exp.iter().sum();
        let mut ranked: Vec<(u32, f64)> = (0..).zip(exp.into_iter().map(|e| e / sum)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked
    }

    fn sorted_ids<'a>(filtered: impl IntoIterator<Item = &'a (u32, f64)>) -> Vec<u32> {
        let mut ids: Vec<u32> = filtered.into_iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn top_k_keeps_exactly_the_reference_set() {
        for case in 0..300 {
            let logits = logits(case);
            let k = 1 + (CounterRng::new(case).at(0) % 60) as usize;
            let mut filtered = candidates(&logits, 0.7);
            filtered.keep_top_k(k);
            assert_eq!(
                filtered.ids(),
                sorted_ids(ranked(&logits, 0.7).iter().take(k)),
                "case {case}"
            );
        }
    }

    #[test]
    fn top_p_keeps_exactly_the_reference_set() {
        for case in 0..300 {
            let logits = logits(case);
            let p = CounterRng::new(case).uniform(0).max(1e-3);
            let mut filtered = candidates(&logits, 1.3);
            filtered.exponentiate();
            filtered.keep_top_p(p);
            let ranked = ranked(&logits, 1.3);
            let mut count = 0;
            while ranked[..count].iter().map(|(_, q)| q).sum::<f64>() < p {
                count += 1;
            }
            assert_eq!(filtered.ids(), sorted_ids(&ranked[..count]), "case {case}");
        }
    }

    #[test]
    fn min_p_keeps_exactly_the_reference_set() {
        for case in 0..300 {
            let logits = logits(case);
            let p = CounterRng::new(case).uniform(0) * 0.5;
            let mut filtered = candidates(&logits, 1.0);
            filtered.exponentiate();
            filtered.keep_min_p(p);
            let ranked = ranked(&logits, 1.0);
            let reference = ranked.iter().filter(|(_, q)| *q >= p * ranked[0].1);
            assert_eq!(filtered.ids(), sorted_ids(reference), "case {case}");
        }
    }

    #[test]
    fn top_p_renormalizes_after_top_k() {
        // 0.4, 0.3, 0.2, 0.1: the first three, renormalized, are 0.44, 0.33, 0.22.
        let logits: Vec<f32> = [0.4_f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let mut filtered = candidates(&logits, 1.0);
        filtered.keep_top_k(3);
        filtered.exponentiate();
        filtered.keep_top_p(0.75);
        assert_eq!(filtered.ids(), [0, 1], "without top-k it would be 0, 1, 2");
    }

    #[test]
    fn unfiltered_sampling_equals_candidates() {
        for case in 0..300 {
            let logits = logits(case);
            let max_logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for i in 0..20 {
                let u = CounterRng::new(case).uniform(i);
                let mut all = candidates(&logits, 0.8);
                all.exponentiate();
                assert_eq!(sample_unfiltered(&logits, max_logit, 0.8, u), all.sample(u));
            }
            assert!(sample_unfiltered(&logits, max_logit, 0.8, 1.0).is_some());
        }
    }

    #[test]
    fn a_tiny_temperature_is_greedy_and_finite() {
        let mut filtered = candidates(&[1.0, 3.0, 2.0, f32::NEG_INFINITY], 1e-300);
        filtered.exponentiate();
        assert_eq!(filtered.sample(0.999), Some((1, 1.0)));
    }
}
