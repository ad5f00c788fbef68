//! The attention mask, in terms of the ranges that each loop needs.

use super::query_ranges::QueryRanges;
use super::sizes::QUERIES;
use super::tile::{ColumnRanges, StepRanges};

/// The mask of a block of queries and a tile of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileMask<'a> {
    /// Position of the block's first query among the keys.
    pub(super) position: usize,
    /// Number of queries in the block.
    pub(super) queries: usize,
    /// Maximum number of keys that a query attends to in a causal mask; `usize::MAX` for all.
    pub(super) window: usize,
    /// The keys that each query attends to; `None` for a causal mask, where they follow from the
    /// position and the window.
    pub(super) ranges: Option<&'a QueryRanges>,
    /// First key of the tile.
    pub(super) first_key: usize,
    /// Number of keys in the tile.
    pub(super) keys: usize,
}

impl TileMask<'_> {
    /// The range of keys, out of `seq_k`, that are visible to any query of the block: first key and
    /// one past the last.
    pub(super) fn visible_keys(&self, seq_k: usize) -> (usize, usize) {
        if let Some(ranges) = self.ranges {
            return ranges.visible_to_any(0, QUERIES);
        }
        let first = (self.position + 1).saturating_sub(self.window);
        (first, seq_k.min(self.position + self.queries))
    }

    /// Number of registers that hold the block's queries; all lanes are below [`QUERIES`].
    pub(super) fn registers(&self, lanes: usize) -> usize {
        assert!(self.queries <= QUERIES);
        self.queries.div_ceil(lanes)
    }

    /// For the queries `first..first + lanes`, the keys of the tile (relative to its first key)
    /// that are visible to any of them and to all of them.
    pub(super) fn key_range(&self, first: usize, lanes: usize) -> KeyRange {
        let (any, all) = match self.ranges {
            None => self.causal_key_range(first, lanes),
            Some(ranges) => (
                ranges.visible_to_any(first, lanes),
                ranges.visible_to_all(first, lanes),
            ),
        };
        let in_tile = |key: usize| key.saturating_sub(self.first_key).min(self.keys);
        let any = (in_tile(any.0), in_tile(any.1));
        let all = (in_tile(all.0), in_tile(all.1));
        if all.0 < all.1 {
            KeyRange { any, all }
        } else {
            KeyRange {
                any,
                all: (any.0, any.0),
            }
        }
    }

    /// The keys visible to any of the queries and to all of them, for a causal mask.
    fn causal_key_range(&self, first: usize, lanes: usize) -> ((usize, usize), (usize, usize)) {
        let (low, high) = (self.position + first, self.position + first + lanes - 1);
        let any = ((low + 1).saturating_sub(self.window), high + 1);
        let all = ((high + 1).saturating_sub(self.window), low + 1);
        (any, all)
    }

    /// The queries of the block that attend to any of the tile's keys `first..end`.
    pub(super) fn query_range(&self, first: usize, end: usize) -> (usize, usize) {
        if let Some(ranges) = self.ranges {
            let keys = (self.first_key + first, self.first_key + end);
            return ranges.attending_to(keys, self.queries);
        }
        let low = (self.first_key + first).saturating_sub(self.position);
        let high = (self.first_key + end - 1)
            .saturating_add(self.window)
            .saturating_sub(self.position);
        (low, high.min(self.queries))
    }
}

/// Ranges of keys of a tile that are visible to a group of queries.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRange {
    /// Keys visible to at least one of the queries.
    pub(super) any: (usize, usize),
    /// Keys visible to all of the queries; within `any`.
    pub(super) all: (usize, usize),
}

impl ColumnRanges for TileMask<'_> {
    #[inline(always)]
    fn range(&self, first: usize, end: usize, lanes: usize) -> (usize, usize) {
        let (low, high) = self.query_range(first, end);
        (low / lanes, high.div_ceil(lanes))
    }
}

/// Steps over keys, for rows that are queries.
pub(super) struct KeySteps<'a>(pub(super) TileMask<'a>);

impl StepRanges for KeySteps<'_> {
    #[inline(always)]
    fn range(&self, first: usize, end: usize) -> (usize, usize) {
        self.0.key_range(first, end - first).any
    }
}

/// Steps over queries, for rows that are keys.
pub(super) struct QuerySteps<'a>(pub(super) TileMask<'a>);

impl StepRanges for QuerySteps<'_> {
    #[inline(always)]
    fn range(&self, first: usize, end: usize) -> (usize, usize) {
        self.0.query_range(first, end)
    }
}
