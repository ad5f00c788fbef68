//! Attention weights and gradients of the scores of one tile in the backward pass.

use pulp::Simd;

use super::super::math::{exp2, tanh};
use super::super::simd::Ops;
use super::block::Block;
use super::mask::TileMask;
use super::sizes::QUERIES;
use super::softmax::Bias;

/// Saved statistics of the queries of a block.
pub(super) struct QueryStats<'a> {
    /// Log-sum-exp, in units of log2.
    pub(super) lse: &'a [f32],
    /// `dz . z`.
    pub(super) delta: &'a [f32],
}

/// A tile's arrays, `[key][query]`.
pub(super) struct GradTile<'a> {
    /// Scores in units of log2; replaced by the attention weights after dropout.
    pub(super) p: &'a mut [f32],
    /// Gradients of the attention weights; replaced by those of the scores.
    pub(super) ds: &'a mut [f32],
    /// Dropout factors, or empty.
    pub(super) dropout: &'a [f32],
}

/// Turns scores and gradients of attention weights into attention weights and gradients of `q k`;
/// both are 0 where a key is masked.
#[inline(always)]
pub(super) fn backward_tile<S: Simd>(
    s: S,
    block: &Block<'_>,
    mask: &TileMask<'_>,
    tile: &mut GradTile<'_>,
    queries: &QueryStats<'_>,
) {
    let len = mask.keys * QUERIES;
    assert!(tile.p.len() >= len && tile.ds.len() >= len);
    assert!(tile.dropout.is_empty() || tile.dropout.len() >= len);
    assert!(queries.lse.len() >= QUERIES && queries.delta.len() >= QUERIES);
    for register in 0..mask.registers(S::LANES) {
        let lane = register * S::LANES;
        // SAFETY: `lane` is below QUERIES, the statistics have QUERIES elements, and the arrays
        // have `mask.keys` rows.
        unsafe {
            let column = Column {
                p: tile.p.as_mut_ptr().add(lane),
                ds: tile.ds.as_mut_ptr().add(lane),
                dropout: (!tile.dropout.is_empty()).then(|| tile.dropout.as_ptr().add(lane)),
                lse: s.load(queries.lse.as_ptr().add(lane)),
                delta: s.load(queries.delta.as_ptr().add(lane)),
                scale: s.splat_f32s(block.scale),
                soft_cap: block.soft_cap,
            };
            let bias = Bias::new(s, mask, block.alibi_slope, lane);
            backward_column(s, mask, &column, &bias, lane);
        }
    }
}

/// One register of queries.
struct Column<S: Simd> {
    p: *mut f32,
    ds: *mut f32,
    dropout: Option<*const f32>,
    lse: S::f32s,
    delta: S::f32s,
    scale: S::f32s,
    /// Soft cap of the scores, in units of log2.
    soft_cap: Option<f32>,
}

/// Processes one register of queries.
///
/// # Safety
/// The pointers of `column` must be valid for `mask.keys` rows.
#[inline(always)]
unsafe fn backward_column<S: Simd>(
    s: S,
    mask: &TileMask<'_>,
    column: &Column<S>,
    bias: &Bias<S>,
    lane: usize,
) {
    let range = mask.key_range(lane, S::LANES);
    let (any, all) = (range.any, range.all);
    // SAFETY: the caller guarantees that the column has `mask.keys` rows.
    unsafe {
        for key in (0..any.0).chain(any.1..mask.keys) {
            s.store(column.p.add(key * QUERIES), s.zero());
            s.store(column.ds.add(key * QUERIES), s.zero());
        }
        for (first, end, masked) in [
            (any.0, all.0, true),
            (all.0, all.1, false),
            (all.1, any.1, true),
        ] {
            for key in first..end {
                backward_score(s, column, bias, key, masked);
            }
        }
    }
}

/// Processes the scores of one key.
///
/// # Safety
/// The pointers of `column` must be valid for row `key`.
#[inline(always)]
unsafe fn backward_score<S: Simd>(
    s: S,
    column: &Column<S>,
    bias: &Bias<S>,
    key: usize,
    masked: bool,
) {
    let offset = key * QUERIES;
    // SAFETY: the caller guarantees that `key` is a row of the column.
    unsafe {
        let mut score = s.load(column.p.add(offset));
        let mut score_derivative = column.scale; // d score / d (q k)
        if let Some(cap) = column.soft_cap {
            let t = tanh(s, s.mul_f32s(score, s.splat_f32s(1.0 / cap)));
            score = s.mul_f32s(t, s.splat_f32s(cap));
            let cap_derivative = s.sub_f32s(s.splat_f32s(1.0), s.mul_f32s(t, t));
            score_derivative = s.mul_f32s(score_derivative, cap_derivative);
        }
        if !bias.is_zero() {
            score = bias.apply(score, key);
        }
        let mut p = exp2(s, s.sub_f32s(score, column.lse));
        if masked {
            // After the exponential, since the log-sum-exp of a query without visible keys is minus
            // infinity.
            p = bias.mask(p, 0.0, key);
        }
        let mut d = s.load(column.ds.add(offset));
        let mut dropped = p;
        if let Some(dropout) = column.dropout {
            let dropout = s.load(dropout.add(offset));
            d = s.mul_f32s(d, dropout);
            dropped = s.mul_f32s(p, dropout);
        }
        let d = s.mul_f32s(s.sub_f32s(d, column.delta), score_derivative);
        s.store(column.p.add(offset), dropped);
        s.store(column.ds.add(offset), s.mul_f32s(p, d));
    }
}
