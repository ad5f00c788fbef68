//! The forward pass's softmax of one tile, each query in its own lane.

use pulp::Simd;

use super::super::math::{self, exp2};
use super::super::simd::Ops;
use super::block::QUERIES;
use super::sight::{Seen, Sight};

/// The running softmax of a block's queries.
pub(super) struct Running<'a> {
    /// Highest score so far, in units of log2.
    pub(super) highest: &'a mut [f32],
    /// Sum of percentages so far, relative to the highest.
    pub(super) sum: &'a mut [f32],
    /// Factor on what was summed up before this tile.
    pub(super) shrink: &'a mut [f32],
}

/// Scores squashed into (-cap, cap), both in units of log2, where any query sees the key.
#[inline(always)]
pub(super) fn soft_cap<S: Simd>(s: S, sight: &Sight, cap: f32, scores: &mut [f32]) {
    assert!(scores.len() >= sight.keys * QUERIES);
    for register in 0..sight.registers(S::LANES) {
        let lane = register * S::LANES;
        let (first, end) = sight.keys_of(lane, S::LANES).any;
        for key in first..end {
            // SAFETY: `lane` is below QUERIES, and keys below `sight.keys`.
            unsafe {
                let at = scores.as_mut_ptr().add(key * QUERIES + lane);
                s.store(at, math::soft_cap(s, s.load(at), cap));
            }
        }
    }
}

/// Scores (in units of log2) to percentages relative to the highest score so far; those of
/// unseen keys become 0. `keep` holds dropout factors, or is empty.
#[inline(always)]
pub(super) fn tile<S: Simd>(
    s: S,
    sight: &Sight,
    slope: f32,
    scores: &mut [f32],
    keep: &[f32],
    running: &mut Running<'_>,
) {
    assert!(scores.len() >= sight.keys * QUERIES);
    assert!(keep.is_empty() || keep.len() >= sight.keys * QUERIES);
    let keep = (!keep.is_empty()).then_some(keep.as_ptr());
    for register in 0..sight.registers(S::LANES) {
        let lane = register * S::LANES;
        let seen = sight.keys_of(lane, S::LANES);
        // SAFETY: `lane` is below QUERIES, and keys below `sight.keys`.
        unsafe {
            let column = scores.as_mut_ptr().add(lane);
            let bias = Bias::new(s, sight, slope, lane);
            let before = s.load(running.highest.as_ptr().add(lane));
            let highest = highest(s, column, seen, &bias, before);
            // With no key seen yet everything is minus infinity; 0 keeps differences finite.
            let none = s.less_than_f32s(highest, s.splat_f32s(f32::MIN));
            let base = s.select_f32s(none, s.zero(), highest);
            let keep = keep.map(|keep| keep.add(lane));
            let sum = percentages(s, column, keep, sight.keys, seen, base);
            let shrink = exp2(s, s.sub_f32s(before, base));
            let old = s.load(running.sum.as_ptr().add(lane));
            s.store(running.highest.as_mut_ptr().add(lane), highest);
            s.store(running.sum.as_mut_ptr().add(lane), s.fma(old, shrink, sum));
            s.store(running.shrink.as_mut_ptr().add(lane), shrink);
        }
    }
}

/// What is added to the scores of one register of queries: the position bias, and minus infinity
/// where a key is not seen.
pub(super) struct Bias<S: Simd> {
    s: S,
    slope: f32,
    /// Place of the register's first query, relative to the tile's first key.
    place: f32,
    window: f32,
    iota: S::f32s,
    /// The bias's share that depends on the query.
    query: S::f32s,
}

impl<S: Simd> Bias<S> {
    #[inline(always)]
    pub(super) fn new(s: S, sight: &Sight, slope: f32, lane: usize) -> Self {
        let iota = s.iota();
        Self {
            s,
            slope,
            // Subtracted as integers: f32 cannot tell far places apart.
            place: (sight.place + lane)
                .cast_signed()
                .wrapping_sub(sight.key.cast_signed()) as f32,
            window: sight.window as f32,
            iota,
            query: s.mul_f32s(iota, s.splat_f32s(-slope)),
        }
    }

    #[inline(always)]
    pub(super) fn is_zero(&self) -> bool {
        self.slope == 0.0
    }

    /// The score with its position bias.
    #[inline(always)]
    pub(super) fn on(&self, score: S::f32s, key: usize) -> S::f32s {
        let shift = self.slope * (key as f32 - self.place);
        let score = self.s.add_f32s(score, self.query);
        self.s.add_f32s(score, self.s.splat_f32s(shift))
    }

    /// `value` where the key is seen, else `unseen`.
    #[inline(always)]
    pub(super) fn mask(&self, value: S::f32s, unseen: f32, key: usize) -> S::f32s {
        let s = self.s;
        // Query lane i is `place + i - key` behind the key: seen from 0 up to window - 1.
        let behind = s.add_f32s(self.iota, s.splat_f32s(self.place - key as f32));
        let unseen = s.splat_f32s(unseen);
        let value = s.select_f32s(s.less_than_f32s(behind, s.zero()), unseen, value);
        let far = s.greater_than_or_equal_f32s(behind, s.splat_f32s(self.window));
        s.select_f32s(far, unseen, value)
    }
}

/// The highest of `before` and a register's scores; biased and masked scores are stored.
///
/// # Safety
/// The keys of `seen` must be valid in the column.
#[inline(always)]
unsafe fn highest<S: Simd>(
    s: S,
    column: *mut f32,
    seen: Seen,
    bias: &Bias<S>,
    before: S::f32s,
) -> S::f32s {
    let (any, all) = (seen.any, seen.all);
    let mut highest = before;
    // SAFETY: the caller's promise.
    unsafe {
        if bias.is_zero() {
            let mut parts = [before; 4];
            let mut key = all.0;
            while key + 4 <= all.1 {
                for (i, part) in parts.iter_mut().enumerate() {
                    *part = s.max_f32s(*part, s.load(column.add((key + i) * QUERIES)));
                }
                key += 4;
            }
            for key in key..all.1 {
                parts[0] = s.max_f32s(parts[0], s.load(column.add(key * QUERIES)));
            }
            let [a, b, c, d] = parts;
            highest = s.max_f32s(s.max_f32s(a, b), s.max_f32s(c, d));
        }
        let biased = if bias.is_zero() { (any.0, any.0) } else { all };
        // The keys of which some lanes see none, and with a bias also all others.
        for (first, end, masked) in [
            (any.0, all.0, true),
            (biased.0, biased.1, false),
            (all.1, any.1, true),
        ] {
            for key in first..end {
                let at = column.add(key * QUERIES);
                let mut score = bias.on(s.load(at), key);
                if masked {
                    score = bias.mask(score, f32::NEG_INFINITY, key);
                }
                s.store(at, score);
                highest = s.max_f32s(highest, score);
            }
        }
    }
    highest
}

/// Replaces a register's scores by percentages and returns their sum.
///
/// # Safety
/// `keys` keys must be valid in the column, and in that of `keep`.
#[inline(always)]
unsafe fn percentages<S: Simd>(
    s: S,
    column: *mut f32,
    keep: Option<*const f32>,
    keys: usize,
    seen: Seen,
    base: S::f32s,
) -> S::f32s {
    let mut sum = s.zero();
    let (first, end) = seen.any;
    // SAFETY: the caller's promise.
    unsafe {
        for key in (0..first).chain(end..keys) {
            s.store(column.add(key * QUERIES), s.zero());
        }
        for key in first..end {
            let at = column.add(key * QUERIES);
            let mut p = exp2(s, s.sub_f32s(s.load(at), base));
            sum = s.add_f32s(sum, p);
            if let Some(keep) = keep {
                p = s.mul_f32s(p, s.load(keep.add(key * QUERIES)));
            }
            s.store(at, p);
        }
    }
    sum
}
