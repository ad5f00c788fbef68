//! Which keys each query attends to, as ranges.

use std::ops::Range;

use super::segment::Segments;

/// Which keys of its row a query attends to, before segments and windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Direction {
    /// Its own and earlier positions.
    #[default]
    Causal,
    /// The first positions of its row; a single length if all rows agree.
    Bidirectional(Vec<usize>),
    /// The first positions of another sequence; a single length if all rows agree.
    Cross(Vec<usize>),
}

/// The contents of an [`AttentionMask`](super::AttentionMask).
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Position of the first query of each row; a single element if all rows agree.
    pub(super) position_offsets: Vec<usize>,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) direction: Direction,
    /// The segments of each row, a single element if all rows agree, or empty.
    pub(super) segments: Vec<Segments>,
}

impl Layout {
    /// Number of rows; 1 if all rows of the batch agree.
    pub(super) fn rows(&self) -> usize {
        let rows = match &self.direction {
            Direction::Causal => self.position_offsets.len(),
            Direction::Bidirectional(lengths) | Direction::Cross(lengths) => lengths.len(),
        };
        rows.max(self.segments.len())
    }

    pub(super) fn position_offset(&self, row: usize) -> usize {
        *for_row(&self.position_offsets, row)
    }

    /// The positions of all queries within their segments; `None` if no row has several segments.
    pub(super) fn segment_positions(&self) -> Option<Vec<usize>> {
        if self.segments.iter().all(|row| row.count() < 2) {
            return None;
        }
        let in_row = |row: usize| {
            let offset = self.position_offset(row);
            let segments = for_row(&self.segments, row);
            (offset..offset + self.queries)
                .map(move |position| position - segments.at(position).first)
        };
        Some((0..self.rows()).flat_map(in_row).collect())
    }

    pub(super) fn has_later_keys(&self) -> bool {
        match &self.direction {
            Direction::Causal => self.segments.iter().any(Segments::has_prefix),
            Direction::Bidirectional(_) | Direction::Cross(_) => true,
        }
    }

    pub(super) fn visible_keys(
        &self,
        row: usize,
        query: usize,
        window: Option<usize>,
    ) -> Range<usize> {
        let position = self.position_offset(row) + query;
        let (mut first, mut end) = match &self.direction {
            Direction::Causal => (0, position + 1),
            Direction::Bidirectional(lengths) | Direction::Cross(lengths) => {
                (0, *for_row(lengths, row))
            }
        };
        if !self.segments.is_empty() {
            let segment = for_row(&self.segments, row).at(position);
            if self.direction == Direction::Causal {
                end = end.max(segment.prefix_end);
            }
            (first, end) = (segment.first, end.min(segment.end));
        }
        if let Some(window) = window {
            first = first.max((position + 1).saturating_sub(window));
            end = end.min(position.saturating_add(window));
        }
        first.min(end)..end
    }
}

/// The element of `row` in a list with one element per row, or with a single one for all rows.
pub(super) fn for_row<T>(rows: &[T], row: usize) -> &T {
    match rows {
        [all] => all,
        rows => &rows[row],
    }
}
