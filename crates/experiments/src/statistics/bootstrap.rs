//! The bootstrap over blocks of tokens.

use nextword_base::CounterRng;

use super::{CONFIDENCE, Interval};

/// The sum of a quantity over the tokens of a block, and their number. Neighbouring tokens depend on each other, blocks
/// hardly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlockSum {
    /// The sum.
    pub sum: f64,
    /// The number of tokens, or bytes.
    pub count: u64,
}

/// The mean over all tokens of `blocks` with its 95 % interval: the percentiles of the means of `samples` samples of as
/// many blocks, drawn with replacement (Efron 1979; Koehn 2004, "Statistical Significance Tests for Machine Translation
/// Evaluation"). The same `seed` gives the same interval. `None` for fewer than two blocks.
///
/// ```
/// use nextword_experiments::statistics::{BlockSum, bootstrap_mean};
///
/// let blocks: Vec<BlockSum> = (0..100).map(|i| BlockSum { sum: f64::from(i % 2), count: 2 }).collect();
/// let interval = bootstrap_mean(&blocks, 1000, 1).unwrap();
/// assert_eq!(interval.mean, 0.25);
/// assert!(0.19 < interval.lower && interval.upper < 0.31); // 2 standard errors of 0.025
/// ```
pub fn bootstrap_mean(blocks: &[BlockSum], samples: usize, seed: u64) -> Option<Interval> {
    let total = |blocks: &mut dyn Iterator<Item = BlockSum>| {
        let (sum, count) = blocks.fold((0.0, 0), |(sum, count), block| {
            (sum + block.sum, count + block.count)
        });
        sum / count as f64
    };
    let samples = samples.max(1);
    if blocks.len() < 2 || blocks.iter().all(|block| block.count == 0) {
        return None;
    }
    let rng = CounterRng::new(seed).named("bootstrap");
    let n = blocks.len() as u64;
    let mut means: Vec<f64> = (0..samples as u64)
        .map(|sample| {
            let rng = rng.stream(sample);
            total(&mut (0..n).map(|draw| blocks[rng.below(draw, n) as usize]))
        })
        .filter(|mean| mean.is_finite())
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = 0.5 * (1.0 - CONFIDENCE);
    Some(Interval {
        mean: total(&mut blocks.iter().copied()),
        lower: percentile(&means, tail)?,
        upper: percentile(&means, 1.0 - tail)?,
    })
}

/// The value below which `share` of the `sorted` values are, interpolated between neighbours.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let position = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    let weight = position - position.floor();
    Some(sorted[low] * (1.0 - weight) + sorted[high] * weight)
}
