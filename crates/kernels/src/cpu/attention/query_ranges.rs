//! The keys that each query of a block attends to, for masks that are not plainly causal.

use pulp::Simd;

use super::super::simd::Ops;
use super::Options;
use super::sizes::QUERIES;

/// For each query of a block, the range of keys it attends to. Both ends never decrease from one
/// query to the next, so that the ranges of several queries follow from the first and the last.
/// Queries beyond the last one repeat its range.
#[derive(Clone, Debug)]
pub(super) struct QueryRanges {
    first: [usize; QUERIES],
    end: [usize; QUERIES],
    /// Whether a query may attend to keys after its own position.
    pub(super) has_later_keys: bool,
}

impl QueryRanges {
    /// The ranges of the `queries` queries from `first` on; `None` for a causal mask.
    pub(super) fn new(
        options: &Options<'_>,
        row: usize,
        first: usize,
        queries: usize,
        seq_k: usize,
    ) -> Option<Self> {
        let mask = options.mask;
        if mask.is_plain_causal() {
            return None;
        }
        let mut ranges = Self {
            first: [0; QUERIES],
            end: [0; QUERIES],
            has_later_keys: mask.has_later_keys(),
        };
        for i in 0..QUERIES {
            let keys = mask.visible_keys(row, first + i.min(queries - 1), options.window);
            ranges.first[i] = keys.start.min(seq_k);
            ranges.end[i] = keys.end.min(seq_k);
        }
        Some(ranges)
    }

    /// The first visible key, and one past the last, of each query of a register, relative to
    /// `first_key`.
    #[inline(always)]
    pub(super) fn registers<S: Simd>(
        &self,
        s: S,
        first_query: usize,
        first_key: usize,
    ) -> (S::f32s, S::f32s) {
        let register = |keys: &[usize; QUERIES]| {
            let mut relative = [0.0; QUERIES];
            let queries = &keys[first_query..first_query + S::LANES];
            for (relative, key) in relative.iter_mut().zip(queries) {
                // Subtracted as integers: f32 cannot distinguish large positions.
                *relative = key.cast_signed().wrapping_sub(first_key.cast_signed()) as f32;
            }
            // SAFETY: the array has at least as many elements as a register.
            unsafe { s.load(relative.as_ptr()) }
        };
        (register(&self.first), register(&self.end))
    }

    /// A range that covers the keys visible to any of the queries `first..first + count`.
    pub(super) fn visible_to_any(&self, first: usize, count: usize) -> (usize, usize) {
        (self.first[first], self.end[first + count - 1])
    }

    /// The keys visible to all of the queries `first..first + count`; may end before it starts.
    pub(super) fn visible_to_all(&self, first: usize, count: usize) -> (usize, usize) {
        (self.first[first + count - 1], self.end[first])
    }

    /// A range that covers the queries, out of the first `queries`, that attend to any of the keys
    /// `first..end`; may end before it starts.
    pub(super) fn attending_to(
        &self,
        (first, end): (usize, usize),
        queries: usize,
    ) -> (usize, usize) {
        // Most tiles are visible to all queries, which takes two comparisons.
        let low = if self.end[0] > first {
            0
        } else {
            self.end[..queries].partition_point(|end| *end <= first)
        };
        let high = if self.first[queries - 1] < end {
            queries
        } else {
            self.first[..queries].partition_point(|first| *first < end)
        };
        (low, high)
    }
}
