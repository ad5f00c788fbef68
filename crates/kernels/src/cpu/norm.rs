//! `LayerNorm` and `RMSNorm` over the last axis.

use pulp::Simd;

use super::par::{self, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part, zero_tail};
use crate::NormKind;

/// A normalization: `y = (x - mean) * rstd * weight + bias`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    /// `LayerNorm` or `RMSNorm`.
    pub(crate) kind: NormKind,
    /// Scale, one element per column.
    pub(crate) weight: &'a [f32],
    /// Bias, or empty for none.
    pub(crate) bias: &'a [f32],
    /// Added to the variance.
    pub(crate) eps: f32,
}

/// Statistics of each row, needed by the backward pass.
#[derive(Debug)]
pub(crate) struct Stats<'a> {
    /// Mean of each row (0 for RMS).
    pub(crate) mean: &'a mut [f32],
    /// 1 / standard deviation, or 1 / root mean square.
    pub(crate) rstd: &'a mut [f32],
}

/// `y = norm(x)`.
pub(crate) fn forward(norm: &Norm<'_>, x: &[f32], y: &mut [f32], stats: Stats<'_>) {
    let width = norm.weight.len();
    let rows = stats.rstd.len();
    assert_eq!(rows.checked_mul(width), Some(x.len()));
    assert!(y.len() == x.len() && stats.mean.len() == rows);
    assert!(norm.bias.is_empty() || norm.bias.len() == width);
    let (y, mean, rstd) = (
        Shared::new(y),
        Shared::new(stats.mean),
        Shared::new(stats.rstd),
    );
    par::for_each_row_group(rows, width, |first, count| {
        for row in first..first + count {
            let offset = row * width;
            // SAFETY: rows are within `y` and do not overlap.
            let y = unsafe { y.slice(offset, width) };
            let (m, r) = forward_row(norm, &x[offset..offset + width], y);
            // SAFETY: `row` is below the number of rows, and each row is processed once.
            unsafe {
                *mean.at(row) = m;
                *rstd.at(row) = r;
            }
        }
    });
}

dispatch!(fn forward_row(norm: &Norm<'_>, x: &[f32], y: &mut [f32]) -> (f32, f32) => forward_body);

#[inline(always)]
fn forward_body<S: Simd>(s: S, norm: &Norm<'_>, x: &[f32], y: &mut [f32]) -> (f32, f32) {
    let width = y.len().min(x.len()).min(norm.weight.len());
    let mean = match norm.kind {
        NormKind::Layer => row_mean(s, x),
        NormKind::Rms => 0.0,
    };
    let rstd = 1.0 / (variance(s, x, mean) + norm.eps).sqrt();
    let bias = (norm.bias.len() >= width).then_some(norm.bias.as_ptr());
    let (mean_all, rstd_all) = (s.splat_f32s(mean), s.splat_f32s(rstd));
    for_lanes!(s, width, |offset, part| {
        // SAFETY: `offset` and `part` stay within the shortest slice.
        unsafe {
            let x = s.sub_f32s(load_part(s, x.as_ptr(), offset, part), mean_all);
            let x = s.mul_f32s(x, rstd_all);
            let weight = load_part(s, norm.weight.as_ptr(), offset, part);
            let shifted = match bias {
                Some(bias) => s.fma(x, weight, load_part(s, bias, offset, part)),
                None => s.mul_f32s(x, weight),
            };
            store_part(s, y.as_mut_ptr(), offset, part, shifted);
        }
    });
    (mean, rstd)
}

#[inline(always)]
fn row_mean<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (mut acc, from) = ([s.zero(); ACCUMULATORS], x.as_ptr());
    let unrolled = x.len() - x.len() % (ACCUMULATORS * S::LANES);
    for offset in (0..unrolled).step_by(ACCUMULATORS * S::LANES) {
        for (i, sum) in acc.iter_mut().enumerate() {
            // SAFETY: `offset` leaves room for ACCUMULATORS registers.
            *sum = s.add_f32s(*sum, unsafe { s.load(from.add(offset + i * S::LANES)) });
        }
    }
    for_lanes!(s, x.len() - unrolled, |offset, part| {
        // SAFETY: `offset` and `part` stay within the rest of x.
        acc[0] = s.add_f32s(acc[0], unsafe {
            load_part(s, from, unrolled + offset, part)
        });
    });
    total(s, acc) / x.len() as f32
}

/// Mean squared deviation from `mean`.
#[inline(always)]
fn variance<S: Simd>(s: S, x: &[f32], mean: f32) -> f32 {
    let (mut acc, from) = ([s.zero(); ACCUMULATORS], x.as_ptr());
    let mean = s.splat_f32s(mean);
    let unrolled = x.len() - x.len() % (ACCUMULATORS * S::LANES);
    for offset in (0..unrolled).step_by(ACCUMULATORS * S::LANES) {
        for (i, sum) in acc.iter_mut().enumerate() {
            // SAFETY: `offset` leaves room for ACCUMULATORS registers.
            let centered = s.sub_f32s(unsafe { s.load(from.add(offset + i * S::LANES)) }, mean);
            *sum = s.fma(centered, centered, *sum);
        }
    }
    for_lanes!(s, x.len() - unrolled, |offset, part| {
        // SAFETY: `offset` and `part` stay within the rest of x.
        let x = unsafe { load_part(s, from, unrolled + offset, part) };
        let centered = zero_tail(s, s.sub_f32s(x, mean), part);
        acc[0] = s.fma(centered, centered, acc[0]);
    });
    total(s, acc) / x.len() as f32
}

/// Independent accumulators, which hide the latency of the additions.
const ACCUMULATORS: usize = 4;

#[inline(always)]
fn total<S: Simd>(s: S, [a, b, c, d]: [S::f32s; ACCUMULATORS]) -> f32 {
    s.reduce_sum_f32s(s.add_f32s(s.add_f32s(a, b), s.add_f32s(c, d)))
}
