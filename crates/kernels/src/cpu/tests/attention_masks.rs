//! Random attention masks of every kind, with their definition key by key.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::unwrap_used
)]

use crate::cpu::testing::Rng;
use crate::{AttentionMask, Segment};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Causal,
    Prefix,
    Bidirectional,
    Cross,
    CausalSegments,
    BidirectionalSegments,
}

pub(crate) const KINDS: [Kind; 6] = [
    Kind::Causal,
    Kind::Prefix,
    Kind::Bidirectional,
    Kind::Cross,
    Kind::CausalSegments,
    Kind::BidirectionalSegments,
];

/// What a mask is made of. All lists have one element for each row.
#[derive(Clone, Debug)]
pub(crate) struct MaskCase {
    pub(crate) kind: Kind,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) offsets: Vec<usize>,
    /// Key lengths, or lengths of prefixes.
    pub(crate) lengths: Vec<usize>,
    pub(crate) segments: Vec<Vec<Segment>>,
    pub(crate) window: Option<usize>,
}

impl MaskCase {
    /// Causal, with all queries at the same positions.
    pub(crate) fn causal(rows: usize, offset: usize, queries: usize) -> Self {
        Self {
            kind: Kind::Causal,
            queries,
            keys: offset + queries,
            offsets: vec![offset; rows],
            lengths: vec![0; rows],
            segments: vec![vec![]; rows],
            window: None,
        }
    }

    pub(crate) fn random(rng: &mut Rng, kind: Kind, rows: usize, queries: usize) -> Self {
        let has_offsets = matches!(kind, Kind::Causal | Kind::Prefix | Kind::CausalSegments);
        let limit = if has_offsets && rng.below(2) == 0 {
            60
        } else {
            1
        };
        // Some cases have equal rows, which a mask stores once.
        let equal = rng.below(3) == 0;
        let mut list = |below: usize| -> Vec<usize> {
            let first = rng.below(below);
            (0..rows)
                .map(|_| if equal { first } else { rng.below(below) })
                .collect()
        };
        let offsets = list(limit);
        let keys = match kind {
            Kind::Cross => 1 + list(2 * queries + 20).first().copied().unwrap_or(0),
            _ => queries + offsets.iter().max().unwrap_or(&0),
        };
        let lengths = list(keys + 1);
        let segments = offsets
            .iter()
            .map(|offset| random_segments(rng, offset + queries))
            .collect();
        Self {
            kind,
            queries,
            keys,
            offsets,
            lengths,
            segments,
            window: (rng.below(3) == 0).then(|| rng.range(1, keys + 3)),
        }
    }

    pub(crate) fn mask(&self) -> AttentionMask {
        let (lengths, offsets, queries) =
            (self.lengths.clone(), self.offsets.clone(), self.queries);
        match self.kind {
            Kind::Causal => AttentionMask::causal(offsets, queries),
            Kind::Prefix => AttentionMask::causal(offsets, queries).with_prefix(lengths),
            Kind::Bidirectional => AttentionMask::bidirectional(lengths, queries),
            Kind::Cross => AttentionMask::cross(lengths, queries, self.keys),
            Kind::CausalSegments => {
                AttentionMask::causal(offsets, queries).with_segments(&self.segments)
            }
            Kind::BidirectionalSegments => {
                AttentionMask::bidirectional(lengths, queries).with_segments(&self.segments)
            }
        }
    }

    pub(crate) fn position(&self, row: usize, query: usize) -> usize {
        self.offsets[row] + query
    }

    /// Whether a query attends to a key: the definition that the kernels are compared with.
    pub(crate) fn is_visible(&self, row: usize, query: usize, key: usize) -> bool {
        let position = self.position(row, query);
        if self.window.is_some_and(|w| position.abs_diff(key) >= w) {
            return false;
        }
        let own = self.segment_of(row, position);
        let other = self.segment_of(row, key);
        let shared = own.is_some() && own.map(|s| s.0) == other.map(|s| s.0);
        let in_prefix = |prefix: usize| other.is_some_and(|(_, index)| index < prefix);
        let written = self.offsets[row] + self.queries;
        match self.kind {
            Kind::Causal => key <= position,
            Kind::Prefix => key <= position || (key < self.lengths[row] && key < written),
            Kind::Bidirectional | Kind::Cross => key < self.lengths[row],
            Kind::CausalSegments => {
                let prefix = own.map_or(0, |(segment, _)| self.segments[row][segment].prefix);
                shared && (key <= position || in_prefix(prefix))
            }
            Kind::BidirectionalSegments => shared && key < self.lengths[row],
        }
    }

    /// The segment of a position, and its index within the segment.
    fn segment_of(&self, row: usize, position: usize) -> Option<(usize, usize)> {
        let mut first = 0;
        for (index, segment) in self.segments[row].iter().enumerate() {
            if position < first + segment.len {
                return Some((index, position - first));
            }
            first += segment.len;
        }
        None
    }
}

/// Segments of up to `keys` positions; some are empty, and some rows end with padding.
fn random_segments(rng: &mut Rng, keys: usize) -> Vec<Segment> {
    let longest = rng.pick(&[3, 20, 100]);
    let (mut left, mut segments) = (keys - rng.below(keys.min(4) + 1), vec![]);
    while left > 0 {
        let len = rng.below(longest + 1).min(left);
        left -= len;
        let prefix = if rng.below(2) == 0 {
            0
        } else {
            rng.below(len + 3)
        };
        segments.push(Segment::new(len).with_prefix(prefix));
    }
    segments
}

#[test]
fn visible_keys_agree_with_the_definition_of_every_kind() {
    let mut rng = Rng(11);
    for i in 0..600 {
        let (rows, queries) = (rng.range(1, 3), rng.range(1, 40));
        let case = MaskCase::random(&mut rng, KINDS[i % KINDS.len()], rows, queries);
        let mask = case.mask();
        assert_eq!((mask.queries(), mask.keys()), (case.queries, case.keys));
        for row in 0..rows {
            let mut previous = 0..0;
            for query in 0..queries {
                let range = mask.visible_keys(row, query, case.window);
                for key in 0..case.keys {
                    assert_eq!(
                        range.contains(&key),
                        case.is_visible(row, query, key),
                        "row {row}, query {query}, key {key} of {case:?}"
                    );
                }
                assert!(range.start <= range.end && range.end <= case.keys);
                assert!(previous.start <= range.start && previous.end <= range.end);
                previous = range;
            }
        }
    }
}

#[test]
fn equal_rows_are_stored_once() {
    assert_eq!(AttentionMask::causal(vec![3, 3, 3], 2).rows(), 1);
    assert_eq!(AttentionMask::causal(vec![3, 3, 4], 2).rows(), 3);
    assert_eq!(AttentionMask::bidirectional(vec![2, 2], 2).rows(), 1);
    let prefix = |lengths| AttentionMask::causal(vec![0], 5).with_prefix(lengths);
    assert_eq!(prefix(vec![2, 2]).rows(), 1);
    assert_eq!(prefix(vec![2, 3]).rows(), 2);
}

#[test]
#[should_panic(expected = "a row of length 6 exceeds the 5 keys")]
fn a_length_beyond_the_keys_panics() {
    let _ = AttentionMask::bidirectional(vec![6], 5);
}

#[test]
#[should_panic(expected = "segments of 6 positions exceed the 5 keys")]
fn segments_beyond_the_keys_panic() {
    let _ = AttentionMask::causal(vec![0], 5).with_segments(&[vec![Segment::new(6)]]);
}

/// The keys of another row may reach further.
#[test]
#[should_panic(expected = "segments of 4 positions exceed the 3 keys of row 0")]
fn segments_beyond_the_last_query_of_their_row_panic() {
    let segments = [vec![Segment::new(4)], vec![Segment::new(7)]];
    let _ = AttentionMask::causal(vec![0, 4], 3).with_segments(&segments);
}

#[test]
fn segments_may_fill_rows_of_different_lengths() {
    let segments = [vec![Segment::new(3)], vec![Segment::new(7)]];
    let mask = AttentionMask::causal(vec![0, 4], 3).with_segments(&segments);
    assert_eq!(mask.visible_keys(0, 2, None), 0..3);
    assert_eq!(mask.visible_keys(1, 2, None), 0..7);
}

#[test]
#[should_panic(expected = "are too long")]
fn segment_lengths_that_overflow_panic() {
    let segments = vec![Segment::new(2), Segment::new(usize::MAX)];
    let _ = AttentionMask::causal(vec![0], 5).with_segments(&[segments]);
}

#[test]
#[should_panic(expected = "exceed the range of positions")]
fn positions_that_overflow_panic() {
    let _ = AttentionMask::causal(vec![usize::MAX - 2], 5);
}

#[test]
#[should_panic(expected = "a prefix needs a causal mask without segments")]
fn a_prefix_of_a_bidirectional_mask_panics() {
    let _ = AttentionMask::bidirectional(vec![3], 3).with_prefix(vec![1]);
}

#[test]
#[should_panic(expected = "segments need a causal or bidirectional mask")]
fn segments_of_a_cross_mask_panic() {
    let _ = AttentionMask::cross(vec![3], 3, 3).with_segments(&[vec![Segment::new(3)]]);
}

#[test]
#[should_panic(expected = "3 rows do not fit a mask of 2 rows")]
fn another_number_of_rows_panics() {
    let _ = AttentionMask::causal(vec![0, 1], 3).with_prefix(vec![1, 2, 3]);
}
