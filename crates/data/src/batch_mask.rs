//! Which tokens of a batch attend to each other.

/// Which tokens of each row of a [`TokenBatch`](crate::TokenBatch) attend to each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BatchMask {
    /// A token attends to itself and to the earlier tokens of its row.
    #[default]
    Causal,
    /// The samples of each row, in order from its first token; what follows the last one is padding. A token attends
    /// to itself, to the earlier tokens of its sample and to the prefix of its sample.
    Segments(Vec<Vec<SampleSegment>>),
    /// The first `n` tokens of each row attend to each other; the others are padding.
    Bidirectional(Vec<usize>),
}

/// A sample within a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SampleSegment {
    /// Number of tokens.
    pub len: usize,
    /// Number of tokens at its start that all its tokens attend to; more than `len` means all.
    pub prefix: usize,
}

impl BatchMask {
    /// The mask of the first `seq` tokens of the rows `rows`.
    ///
    /// ```
    /// use nextword_data::{BatchMask, SampleSegment};
    ///
    /// let segment = |len, prefix| SampleSegment { len, prefix };
    /// let mask = BatchMask::Segments(vec![vec![segment(2, 0), segment(3, 2)], vec![segment(4, 1)]]);
    /// let first = BatchMask::Segments(vec![vec![segment(2, 0), segment(1, 2)]]);
    /// assert_eq!(mask.select(&[0], 3), first);
    /// assert_eq!(BatchMask::Bidirectional(vec![4, 2]).select(&[1, 0], 3), BatchMask::Bidirectional(vec![2, 3]));
    /// ```
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn select(&self, rows: &[usize], seq: usize) -> Self {
        match self {
            Self::Causal => Self::Causal,
            Self::Segments(segments) => {
                Self::Segments(rows.iter().map(|row| first(&segments[*row], seq)).collect())
            }
            Self::Bidirectional(lengths) => {
                Self::Bidirectional(rows.iter().map(|row| lengths[*row].min(seq)).collect())
            }
        }
    }
}

/// The segments of the first `seq` tokens of a row.
fn first(segments: &[SampleSegment], seq: usize) -> Vec<SampleSegment> {
    let mut rest = seq;
    let mut cut = Vec::new();
    for segment in segments {
        let len = segment.len.min(rest);
        if len == 0 {
            break;
        }
        cut.push(SampleSegment { len, ..*segment });
        rest -= len;
    }
    cut
}
