//! Samples packed into one row.

/// A sample that shares its row with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Number of positions.
    pub len: usize,
    /// Number of positions at the start that every query of the segment attends to, for causal
    /// masks; more than `len` means all.
    pub prefix: usize,
}

impl Segment {
    /// A segment of `len` positions without a prefix.
    ///
    /// ```
    /// # use nextword_kernels::Segment;
    /// assert_eq!(Segment::new(7), Segment { len: 7, prefix: 0 });
    /// ```
    pub fn new(len: usize) -> Self {
        Self { len, prefix: 0 }
    }

    /// Makes the first `prefix` positions visible to every query of the segment.
    ///
    /// ```
    /// # use nextword_kernels::Segment;
    /// assert_eq!(Segment::new(7).with_prefix(3).prefix, 3);
    /// ```
    #[must_use]
    pub fn with_prefix(self, prefix: usize) -> Self {
        Self { prefix, ..self }
    }
}

/// The positions of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentBounds {
    pub(super) first: usize,
    /// One past the last position that every query of the segment attends to.
    pub(super) prefix_end: usize,
    /// One past the last position.
    pub(super) end: usize,
}

/// The segments of one row, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segments(Vec<SegmentBounds>);

impl Segments {
    /// # Panics
    /// If the sum of the lengths exceeds `usize`.
    pub(super) fn new(segments: &[Segment]) -> Self {
        let mut first = 0_usize;
        let bounds = segments.iter().map(|segment| {
            let Some(end) = first.checked_add(segment.len) else {
                panic!(
                    "segments of {first} and {} positions are too long",
                    segment.len
                );
            };
            let prefix_end = first + segment.prefix.min(segment.len);
            let bounds = SegmentBounds {
                first,
                prefix_end,
                end,
            };
            first = end;
            bounds
        });
        Self(bounds.collect())
    }

    /// Number of segments.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Number of positions in all segments.
    pub(super) fn len(&self) -> usize {
        self.0.last().map_or(0, |last| last.end)
    }

    /// Whether a query may attend to a later key of a prefix.
    pub(super) fn has_prefix(&self) -> bool {
        self.0.iter().any(|s| s.prefix_end > s.first + 1)
    }

    /// The segment of a position; after the last segment, an empty one.
    pub(super) fn at(&self, position: usize) -> SegmentBounds {
        let index = self.0.partition_point(|segment| segment.end <= position);
        let len = self.len();
        let padding = SegmentBounds {
            first: len,
            prefix_end: len,
            end: len,
        };
        self.0.get(index).copied().unwrap_or(padding)
    }
}
