//! The tokens that may be drawn, thinned out by top-k, top-p and min-p.
//!
//! No filter sorts the whole vocabulary: top-k selects, top-p sorts the likeliest in growing
//! portions until it has enough, min-p compares.

use std::cmp::Ordering;

use nextword_kernels::cpu::exponentials::{exp_of_negative, exponentials};

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// Logit by temperature, relative to the best: 0 or less.
    score: f64,
    /// `exp(score)`: the probability up to a common factor; 1 for the best.
    weight: f64,
}

/// The likelier one first, of equals the one with the lower id: a strict order.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// The tokens that may be drawn.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    all: Vec<Candidate>,
}

impl Candidates {
    /// All tokens with a finite logit, by `temperature` (above 0); `best` is the largest logit.
    pub(crate) fn new(logits: &[f32], best: f32, temperature: f64) -> Self {
        let best = f64::from(best);
        let all = (0_u32..).zip(logits).filter(|(_, logit)| logit.is_finite());
        let all = all.map(|(id, logit)| {
            let score = (f64::from(*logit) - best) / temperature;
            Candidate {
                id,
                score,
                weight: 0.0,
            }
        });
        Self { all: all.collect() }
    }

    /// Keeps the `k` likeliest.
    pub(crate) fn keep_top_k(&mut self, k: usize) {
        if k < self.all.len() {
            self.all.select_nth_unstable_by(k, likelier);
            self.all.truncate(k);
        }
    }

    /// Turns scores into weights; to be called after `keep_top_k`, before all else.
    pub(crate) fn weigh(&mut self) {
        for candidate in &mut self.all {
            candidate.weight = exp_of_negative(candidate.score);
        }
    }

    /// Keeps the fewest likeliest that have the share `p` of all weight.
    pub(crate) fn keep_top_p(&mut self, p: f64) {
        if p >= 1.0 {
            return;
        }
        let enough = p * self.total();
        let (mut sorted, mut portion, mut sum) = (0, 64, 0.0);
        while sorted < self.all.len() {
            let rest = &mut self.all[sorted..];
            if portion < rest.len() {
                rest.select_nth_unstable_by(portion, likelier);
            }
            let count = portion.min(rest.len());
            rest[..count].sort_unstable_by(likelier);
            for (i, candidate) in rest[..count].iter().enumerate() {
                sum += candidate.weight;
                if sum >= enough {
                    self.all.truncate(sorted + i + 1);
                    return;
                }
            }
            sorted += count;
            portion *= 4;
        }
    }

    /// Keeps those with at least the share `p` of the best one's weight.
    pub(crate) fn keep_min_p(&mut self, p: f64) {
        self.all.retain(|candidate| candidate.weight >= p);
    }

    /// The token at the share `u`, in [0, 1), of all weight, counted in the order of ids, and its
    /// probability. `None` if there is none.
    pub(crate) fn draw(mut self, u: f64) -> Option<(u32, f64)> {
        self.all.sort_unstable_by_key(|candidate| candidate.id); // only a check if none was moved
        let total = self.total();
        let mut sum = 0.0;
        let drawn = self.all.iter().find(|candidate| {
            sum += candidate.weight;
            sum > u * total
        });
        // Rounding can leave the sum of all a hair below `u * total`.
        let drawn = drawn.or_else(|| self.all.iter().rfind(|candidate| candidate.weight > 0.0))?;
        Some((drawn.id, drawn.weight / total))
    }

    fn total(&self) -> f64 {
        self.all.iter().map(|candidate| candidate.weight).sum()
    }

    /// What is left, in the order of ids.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.all.iter().map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Id and share of all weight of what is left, in the order of ids.
    pub(crate) fn shares(&self) -> Vec<(u32, f64)> {
        let total = self.total();
        let share = |candidate: &Candidate| (candidate.id, candidate.weight / total);
        let mut shares: Vec<(u32, f64)> = self.all.iter().map(share).collect();
        shares.sort_unstable_by_key(|(id, _)| *id);
        shares
    }
}

/// [`Candidates::draw`] where nothing is cut: every token at its probability by `temperature`.
pub(crate) fn draw_from_all(
    logits: &[f32],
    best: f32,
    temperature: f64,
    u: f64,
) -> Option<(u32, f64)> {
    let mut sums = vec![0.0; logits.len()];
    exponentials(logits, best, temperature, &mut sums);
    let mut total = 0.0;
    for weight in &mut sums {
        total += *weight;
        *weight = total;
    }
    if total <= 0.0 {
        return None;
    }
    let drawn = sums.partition_point(|sum| *sum <= u * total);
    // Rounding can lift `u * total` to the sum of all.
    let id = drawn.min(sums.partition_point(|sum| *sum < total));
    let weight = exp_of_negative((f64::from(logits[id]) - f64::from(best)) / temperature);
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
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Candidates::new(logits, best, temperature)
    }

    /// The reference: softmax in the plain way, then a full sort.
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

    fn sorted_ids<'a>(kept: impl IntoIterator<Item = &'a (u32, f64)>) -> Vec<u32> {
        let mut ids: Vec<u32> = kept.into_iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn top_k_keeps_exactly_the_reference_set() {
        for case in 0..300 {
            let logits = logits(case);
            let k = 1 + (CounterRng::new(case).at(0) % 60) as usize;
            let mut kept = candidates(&logits, 0.7);
            kept.keep_top_k(k);
            assert_eq!(
                kept.ids(),
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
            let mut kept = candidates(&logits, 1.3);
            kept.weigh();
            kept.keep_top_p(p);
            let ranked = ranked(&logits, 1.3);
            let mut count = 0;
            while ranked[..count].iter().map(|(_, q)| q).sum::<f64>() < p {
                count += 1;
            }
            assert_eq!(kept.ids(), sorted_ids(&ranked[..count]), "case {case}");
        }
    }

    #[test]
    fn min_p_keeps_exactly_the_reference_set() {
        for case in 0..300 {
            let logits = logits(case);
            let p = CounterRng::new(case).uniform(0) * 0.5;
            let mut kept = candidates(&logits, 1.0);
            kept.weigh();
            kept.keep_min_p(p);
            let ranked = ranked(&logits, 1.0);
            let reference = ranked.iter().filter(|(_, q)| *q >= p * ranked[0].1);
            assert_eq!(kept.ids(), sorted_ids(reference), "case {case}");
        }
    }

    #[test]
    fn filters_after_top_k_see_the_probabilities_that_it_left() {
        // 0.4, 0.3, 0.2, 0.1: the first three, made whole, are 0.44, 0.33, 0.22.
        let logits: Vec<f32> = [0.4_f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let mut kept = candidates(&logits, 1.0);
        kept.keep_top_k(3);
        kept.weigh();
        kept.keep_top_p(0.75);
        assert_eq!(kept.ids(), [0, 1], "without top-k it would be 0, 1, 2");
    }

    #[test]
    fn a_draw_from_all_is_the_draw_of_candidates() {
        for case in 0..300 {
            let logits = logits(case);
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for i in 0..20 {
                let u = CounterRng::new(case).uniform(i);
                let mut all = candidates(&logits, 0.8);
                all.weigh();
                assert_eq!(draw_from_all(&logits, best, 0.8, u), all.draw(u));
            }
            assert!(draw_from_all(&logits, best, 0.8, 1.0).is_some());
        }
    }

    #[test]
    fn a_tiny_temperature_is_the_likeliest_token_and_no_nan() {
        let mut kept = candidates(&[1.0, 3.0, 2.0, f32::NEG_INFINITY], 1e-300);
        kept.weigh();
        assert_eq!(kept.draw(0.999), Some((1, 1.0)));
    }
}
