//! The search for scale and minimum of a block.

use burn::tensor::f16;

use super::{BLOCK, BlockFormat, ColumnBlock, MAX_FACTORS};
use crate::cpu::isa::Isa;

type Values = [f32; BLOCK];

/// Largest 4-bit integer.
const LEVELS: f32 = 15.0;
/// How far each end of the range of integers is moved inwards, as fractions of the range of values: the
/// extreme values then saturate, and the others have a smaller step.
const INSETS: [f32; 6] = [0.0, 0.02, 0.04, 0.07, 0.1, 0.14];
/// How often scale and minimum are fitted to the integers, and the integers to them.
const REFINEMENTS: usize = 3;

/// Least weight of a value, relative to the mean of its block: a value that no text has used is not arbitrary.
const MIN_WEIGHT: f32 = 1e-3;

/// Quantizes up to 32 values with the scale and minimum that minimize the squared error, in which each value has the
/// weight `importance`; without it, all are the same. Weighting it by the size of the values gives a higher perplexity.
pub(super) fn with_minimum(used: &[f32], importance: Option<&[f32]>) -> ColumnBlock {
    let len = used.len();
    let mut values = [0.0; BLOCK];
    values[..len].copy_from_slice(used);
    let mut best = Candidate {
        scale: 0,
        minimum: 0,
        integers: [0.0; BLOCK],
        error: f32::INFINITY,
    };
    let problem = Problem {
        values: &values,
        weights: weights(len, importance),
    };
    search(&mut best, &problem, len);
    let mut integers = [8; BLOCK]; // The padding.
    for (integer, value) in integers.iter_mut().zip(&best.integers[..len]) {
        *integer = *value as u8;
    }
    ColumnBlock {
        integers,
        scale: best.scale,
        minimum: best.minimum,
        factors: [0; MAX_FACTORS],
    }
}

/// Runs `search_all` compiled for the machine's instruction set. Its operations are the same on all.
fn search(best: &mut Candidate, problem: &Problem<'_>, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512(best: &mut Candidate, problem: &Problem<'_>, len: usize) {
            search_all(best, problem, len);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(best: &mut Candidate, problem: &Problem<'_>, len: usize) {
            search_all(best, problem, len);
        }
        let isa = Isa::current();
        if isa >= Isa::Avx512 {
            // SAFETY: the machine supports its current level.
            return unsafe { avx512(best, problem, len) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: the machine supports its current level.
            return unsafe { avx2(best, problem, len) };
        }
    }
    let _ = Isa::current;
    search_all(best, problem, len);
}

/// The weights of the first `len` values: their importance relative to its mean, or 1. Those of padding are 0.
fn weights(len: usize, importance: Option<&[f32]>) -> Values {
    let mut weights = [0.0; BLOCK];
    weights[..len].fill(1.0);
    let Some(importance) = importance else {
        return weights;
    };
    let mean = importance.iter().sum::<f32>() / len as f32;
    if mean.is_normal() {
        for (weight, importance) in weights.iter_mut().zip(importance) {
            *weight = (importance / mean).max(MIN_WEIGHT);
        }
    }
    weights
}

/// The best scale and minimum (f16) that were found.
struct Candidate {
    scale: u16,
    minimum: u16,
    integers: Values,
    error: f32,
}

#[inline(always)]
fn search_all(best: &mut Candidate, problem: &Problem<'_>, len: usize) {
    let used = &problem.values[..len];
    let (low, high) = used
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| {
            (low.min(*v), high.max(*v))
        });
    let range = high - low;
    problem.try_out(best, range / LEVELS, low);
    for low_inset in INSETS {
        for high_inset in INSETS {
            let step = range * (1.0 - low_inset - high_inset) / LEVELS;
            let integers = problem.round(step, low + low_inset * range);
            if let Some((scale, minimum)) = problem.fit(&integers) {
                problem.try_out(best, scale, minimum);
            }
        }
    }
    for _ in 0..REFINEMENTS {
        let before = best.error;
        if let Some((scale, minimum)) = problem.fit(&best.integers) {
            problem.try_out(best, scale, minimum);
        }
        if best.error >= before {
            break;
        }
    }
}

struct Problem<'a> {
    values: &'a Values,
    /// 0 for padding.
    weights: Values,
}

impl Problem<'_> {
    /// Rounds the values to integers.
    #[inline(always)]
    fn round(&self, scale: f32, minimum: f32) -> Values {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut integers = [0.0; BLOCK];
        for t in 0..BLOCK {
            let level = ((self.values[t] - minimum) * inverse).clamp(0.0, LEVELS);
            integers[t] = to_integer(level);
        }
        integers
    }

    /// Returns the scale and minimum with the smallest error for these integers: a weighted linear
    /// regression. `None` if the integers are all the same.
    #[inline(always)]
    fn fit(&self, integers: &Values) -> Option<(f32, f32)> {
        let (mut products, mut squares) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (mut weighted, mut values) = ([0.0; BLOCK], [0.0; BLOCK]);
        for t in 0..BLOCK {
            weighted[t] = self.weights[t] * integers[t];
            squares[t] = weighted[t] * integers[t];
            products[t] = weighted[t] * self.values[t];
            values[t] = self.weights[t] * self.values[t];
        }
        let (weight, value) = (sum(&self.weights), sum(&values));
        let (integer, square, product) = (sum(&weighted), sum(&squares), sum(&products));
        let determinant = weight * square - integer * integer;
        let scale = (weight * product - integer * value) / determinant;
        let is_usable = determinant > 0.0 && scale.is_finite() && scale > 0.0;
        is_usable.then(|| (scale, (value - scale * integer) / weight))
    }

    /// Rounds scale and minimum to f16 and the values to integers, and keeps them if the error is less
    /// than the best.
    #[inline(always)]
    fn try_out(&self, best: &mut Candidate, scale: f32, minimum: f32) {
        let [scale_bits, minimum_bits] = [scale, minimum].map(|v| f16::from_f32(v).to_bits());
        let [scale, minimum] =
            [scale_bits, minimum_bits].map(|bits| BlockFormat::Q4_1.to_f32(bits));
        let integers = self.round(scale, minimum);
        let mut errors = [0.0; BLOCK];
        for t in 0..BLOCK {
            let error = scale * integers[t] + minimum - self.values[t];
            errors[t] = self.weights[t] * error * error;
        }
        let error = sum(&errors);
        if error < best.error {
            *best = Candidate {
                scale: scale_bits,
                minimum: minimum_bits,
                integers,
                error,
            };
        }
    }
}

/// Rounds a value from 0 to 15 to the nearest integer, ties to even: the addition leaves no fraction.
#[inline(always)]
fn to_integer(level: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (level + SHIFT) - SHIFT
}

/// Sums in a fixed order that vectorizes.
#[inline(always)]
fn sum(values: &Values) -> f32 {
    let mut sums = [0.0; 16];
    for t in 0..16 {
        sums[t] = values[t] + values[t + 16];
    }
    let mut width = 8;
    while width > 0 {
        for t in 0..width {
            sums[t] += sums[t + width];
        }
        width /= 2;
    }
    sums[0]
}
