//! Online softmax of one tile in the forward pass, with one query per lane.

use pulp::Simd;

use super::super::math::{self, exp2};
use super::super::simd::Ops;
use super::mask::{KeyRange, TileMask};
use super::sizes::QUERIES;

/// The running softmax of the queries of a block.
pub(super) struct RunningSoftmax<'a> {
    /// Maximum score so far, in units of log2.
    pub(super) row_max: &'a mut [f32],
    /// Sum of exponentials so far, relative to the maximum.
    pub(super) sum: &'a mut [f32],
    /// Factor on the sums accumulated before this tile.
    pub(super) rescale: &'a mut [f32],
}

/// Soft-caps the scores to (-cap, cap), both in units of log2, where any query attends to the key.
#[inline(always)]
pub(super) fn soft_cap<S: Simd>(s: S, mask: &TileMask<'_>, cap: f32, scores: &mut [f32]) {
    assert!(scores.len() >= mask.keys * QUERIES);
    for register in 0..mask.registers(S::LANES) {
        let lane = register * S::LANES;
        let (first, end) = mask.key_range(lane, S::LANES).any;
        for key in first..end {
            // SAFETY: `lane` is below QUERIES, and keys are below `mask.keys`.
            unsafe {
                let ptr = scores.as_mut_ptr().add(key * QUERIES + lane);
                s.store(ptr, math::soft_cap(s, s.load(ptr), cap));
            }
        }
    }
}

/// Replaces scores (in units of log2) by exponentials relative to the maximum score so far; those
/// of masked keys become 0. `dropout` contains dropout factors, or is empty.
#[inline(always)]
pub(super) fn update_tile<S: Simd>(
    s: S,
    mask: &TileMask<'_>,
    slope: f32,
    scores: &mut [f32],
    dropout: &[f32],
    running: &mut RunningSoftmax<'_>,
) {
    assert!(scores.len() >= mask.keys * QUERIES);
    assert!(dropout.is_empty() || dropout.len() >= mask.keys * QUERIES);
    assert!(running.row_max.len() >= QUERIES && running.sum.len() >= QUERIES);
    assert!(running.rescale.len() >= QUERIES);
    let dropout = (!dropout.is_empty()).then_some(dropout.as_ptr());
    for register in 0..mask.registers(S::LANES) {
        let lane = register * S::LANES;
        let range = mask.key_range(lane, S::LANES);
        // SAFETY: `lane` is below QUERIES, and keys are below `mask.keys`; the slices have the
        // lengths asserted above.
        unsafe {
            let column = scores.as_mut_ptr().add(lane);
            let bias = Bias::new(s, mask, slope, lane);
            let previous = s.load(running.row_max.as_ptr().add(lane));
            let row_max = row_max(s, column, range, &bias, previous);
            // Without a visible key so far, the maximum is minus infinity; a base of 0 keeps
            // differences finite.
            let no_key = s.less_than_f32s(row_max, s.splat_f32s(f32::MIN));
            let base = s.select_f32s(no_key, s.zero(), row_max);
            let dropout = dropout.map(|dropout| dropout.add(lane));
            let sum = exponentiate(s, column, dropout, mask.keys, range, base);
            let rescale = exp2(s, s.sub_f32s(previous, base));
            let previous_sum = s.load(running.sum.as_ptr().add(lane));
            s.store(running.row_max.as_mut_ptr().add(lane), row_max);
            s.store(
                running.sum.as_mut_ptr().add(lane),
                s.fma(previous_sum, rescale, sum),
            );
            s.store(running.rescale.as_mut_ptr().add(lane), rescale);
        }
    }
}

/// The bias on the scores of one register of queries: the ALiBi bias, and minus infinity where a key
/// is masked.
pub(super) struct Bias<S: Simd> {
    s: S,
    slope: f32,
    /// Position of the register's first query, relative to the tile's first key.
    position: f32,
    iota: S::f32s,
    /// The part of the bias that depends on the query.
    query_term: S::f32s,
    /// Whether a query may attend to keys after its own position.
    has_later_keys: bool,
    /// First visible key of each query, relative to the tile's first key.
    first: S::f32s,
    /// One past the last visible key of each query.
    end: S::f32s,
}

impl<S: Simd> Bias<S> {
    #[inline(always)]
    pub(super) fn new(s: S, mask: &TileMask<'_>, slope: f32, lane: usize) -> Self {
        let iota = s.iota();
        // Subtracted as integers: f32 cannot distinguish large positions.
        let position = (mask.position + lane)
            .cast_signed()
            .wrapping_sub(mask.first_key.cast_signed());
        let (first, end) = match mask.ranges {
            None => {
                let end = position.saturating_add(1);
                let first = end.saturating_sub_unsigned(mask.window);
                (
                    s.add_f32s(iota, s.splat_f32s(first as f32)),
                    s.add_f32s(iota, s.splat_f32s(end as f32)),
                )
            }
            Some(ranges) => ranges.registers(s, lane, mask.first_key),
        };
        Self {
            s,
            slope,
            position: position as f32,
            iota,
            query_term: s.mul_f32s(iota, s.splat_f32s(-slope)),
            has_later_keys: mask.ranges.is_some_and(|ranges| ranges.has_later_keys),
            first,
            end,
        }
    }

    #[inline(always)]
    pub(super) fn is_zero(&self) -> bool {
        self.slope == 0.0
    }

    /// Adds the ALiBi bias to a score.
    #[inline(always)]
    pub(super) fn apply(&self, score: S::f32s, key: usize) -> S::f32s {
        if self.has_later_keys {
            let s = self.s;
            let distance = s.add_f32s(self.iota, s.splat_f32s(self.position - key as f32));
            let bias = s.mul_f32s(s.abs_f32s(distance), s.splat_f32s(self.slope));
            return s.sub_f32s(score, bias);
        }
        let shift = self.slope * (key as f32 - self.position);
        let score = self.s.add_f32s(score, self.query_term);
        self.s.add_f32s(score, self.s.splat_f32s(shift))
    }

    /// Returns `value` where the key is visible, otherwise `fill`.
    #[inline(always)]
    pub(super) fn mask(&self, value: S::f32s, fill: f32, key: usize) -> S::f32s {
        let s = self.s;
        let (key, fill) = (s.splat_f32s(key as f32), s.splat_f32s(fill));
        let value = s.select_f32s(s.less_than_f32s(key, self.first), fill, value);
        s.select_f32s(s.greater_than_or_equal_f32s(key, self.end), fill, value)
    }
}

/// Returns the maximum of `previous` and the scores of one register, and stores biased and masked
/// scores.
///
/// # Safety
/// The keys of `range` must be valid in the column.
#[inline(always)]
unsafe fn row_max<S: Simd>(
    s: S,
    column: *mut f32,
    range: KeyRange,
    bias: &Bias<S>,
    previous: S::f32s,
) -> S::f32s {
    let (any, all) = (range.any, range.all);
    let mut row_max = previous;
    // SAFETY: the caller guarantees that the keys of `range` are valid in the column.
    unsafe {
        if bias.is_zero() {
            let mut acc = [previous; 4];
            let mut key = all.0;
            while key + 4 <= all.1 {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = s.max_f32s(*acc, s.load(column.add((key + i) * QUERIES)));
                }
                key += 4;
            }
            for key in key..all.1 {
                acc[0] = s.max_f32s(acc[0], s.load(column.add(key * QUERIES)));
            }
            let [a, b, c, d] = acc;
            row_max = s.max_f32s(s.max_f32s(a, b), s.max_f32s(c, d));
        }
        let biased = if bias.is_zero() { (any.0, any.0) } else { all };
        // The keys masked for some lanes and, with a bias, all other keys too.
        for (first, end, masked) in [
            (any.0, all.0, true),
            (biased.0, biased.1, false),
            (all.1, any.1, true),
        ] {
            for key in first..end {
                let ptr = column.add(key * QUERIES);
                let mut score = bias.apply(s.load(ptr), key);
                if masked {
                    score = bias.mask(score, f32::NEG_INFINITY, key);
                }
                s.store(ptr, score);
                row_max = s.max_f32s(row_max, score);
            }
        }
    }
    row_max
}

/// Replaces the scores of a register by exponentials and returns their sum before dropout.
///
/// # Safety
/// `keys` keys must be valid in the column, and in that of `dropout`.
#[inline(always)]
unsafe fn exponentiate<S: Simd>(
    s: S,
    column: *mut f32,
    dropout: Option<*const f32>,
    keys: usize,
    range: KeyRange,
    base: S::f32s,
) -> S::f32s {
    let mut sum = s.zero();
    let (first, end) = range.any;
    // SAFETY: the caller guarantees that `keys` keys are valid in both columns.
    unsafe {
        for key in (0..first).chain(end..keys) {
            s.store(column.add(key * QUERIES), s.zero());
        }
        for key in first..end {
            let ptr = column.add(key * QUERIES);
            let mut p = exp2(s, s.sub_f32s(s.load(ptr), base));
            sum = s.add_f32s(sum, p);
            if let Some(dropout) = dropout {
                p = s.mul_f32s(p, s.load(dropout.add(key * QUERIES)));
            }
            s.store(ptr, p);
        }
    }
    sum
}
