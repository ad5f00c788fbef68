//! The attention mask of a forward pass, shared by all layers and by both implementations.

#[cfg(feature = "gpu")]
mod gpu_ranges;
mod layout;
mod segment;
mod tensors;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

pub use segment::Segment;

use layout::{Direction, Layout, for_row};
use segment::Segments;
use tensors::MaskTensors;

/// Which keys each query of a forward pass attends to.
///
/// A mask has one row per sequence of the batch, `queries` queries and `keys` keys. Positions count
/// from 0 in each row: key `j` is at position `j`, query `i` at `position_offsets[row] + i`. The
/// keys that a query attends to are always a range, [`visible_keys`](Self::visible_keys):
///
/// | mask | visible keys of the query at position `p` |
/// |---|---|
/// | [`causal`](Self::causal) | `0..p + 1` |
/// | [`with_prefix`](Self::with_prefix) of `n` keys | `0..max(p + 1, n)` |
/// | [`bidirectional`](Self::bidirectional), [`cross`](Self::cross) | `0..key_lengths[row]` |
/// | [`with_segments`](Self::with_segments) | the same, within the segment of `p` |
/// | a sliding window of `w` | the same, where `abs(p - key) < w` |
///
/// The window is an argument of each layer, because layers with and without one alternate in many
/// models. It counts the query's own position and keys on both sides, as in Gemma 3's bidirectional
/// variant in transformers (`abs(q_idx - kv_idx) < sliding_window`); in a causal mask it is the
/// number of visible keys. Configurations of `ModernBERT` (Warner et al. 2024, arXiv 2412.13663)
/// count differently: their `local_attention = 128` is 64 keys on each side, a window of 65 here.
///
/// A query without any visible key is allowed, as are rows without keys: its output is 0, and so are
/// its gradients.
///
/// A clone shares everything with the original.
#[derive(Clone, Debug, Default)]
pub struct AttentionMask(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    layout: Layout,
    tensors: MaskTensors,
    #[cfg(feature = "gpu")]
    ranges: gpu_ranges::GpuRanges,
}

impl AttentionMask {
    /// A decoder's mask: a query attends to itself and to earlier positions.
    ///
    /// `position_offsets` has the position of the first query of each row, the number of keys and
    /// values already in a KV cache; a single element applies to all rows. The number of keys is
    /// `seq` plus the largest offset.
    ///
    /// ```
    /// use nextword_kernels::AttentionMask;
    ///
    /// let mask = AttentionMask::causal(vec![0, 4], 3);
    /// assert_eq!(mask.keys(), 7);
    /// assert_eq!(mask.visible_keys(0, 1, None), 0..2);
    /// assert_eq!(mask.visible_keys(1, 1, None), 0..6);
    /// assert_eq!(mask.visible_keys(1, 1, Some(2)), 4..6);
    /// ```
    ///
    /// # Panics
    /// If a position exceeds `usize`.
    pub fn causal(position_offsets: Vec<usize>, seq: usize) -> Self {
        let end = |offset: &usize| match offset.checked_add(seq) {
            Some(end) => end,
            None => panic!("{seq} tokens after position {offset} exceed the range of positions"),
        };
        Self::from_layout(Layout {
            keys: position_offsets.iter().map(end).max().unwrap_or(0),
            position_offsets: collapse(position_offsets),
            queries: seq,
            direction: Direction::Causal,
            segments: Vec::new(),
        })
    }

    /// An encoder's mask: every query attends to the first `key_lengths[row]` positions of its row,
    /// also to later ones. A single length applies to all rows.
    ///
    /// Positions from `key_lengths[row]` on are padding: no query attends to them. Their own outputs
    /// are computed and have no meaning, as with a padding mask in `PyTorch`.
    ///
    /// ```
    /// use nextword_kernels::AttentionMask;
    ///
    /// let mask = AttentionMask::bidirectional(vec![5, 3], 5);
    /// assert_eq!(mask.visible_keys(0, 1, None), 0..5);
    /// assert_eq!(mask.visible_keys(1, 1, None), 0..3);
    /// assert_eq!(mask.visible_keys(0, 2, Some(2)), 1..4);
    /// ```
    ///
    /// # Panics
    /// If a length exceeds `seq`.
    pub fn bidirectional(key_lengths: Vec<usize>, seq: usize) -> Self {
        Self::full(key_lengths, seq, seq, Direction::Bidirectional)
    }

    /// The mask of encoder-decoder attention (Vaswani et al. 2017, section 3.2.3): every query of
    /// the decoder attends to the first `key_lengths[row]` of the encoder's `keys` positions. A
    /// single length applies to all rows.
    ///
    /// ```
    /// use nextword_kernels::AttentionMask;
    ///
    /// let mask = AttentionMask::cross(vec![4, 2], 3, 4);
    /// assert_eq!((mask.queries(), mask.keys()), (3, 4));
    /// assert_eq!(mask.visible_keys(0, 0, None), 0..4);
    /// assert_eq!(mask.visible_keys(1, 2, None), 0..2);
    /// ```
    ///
    /// # Panics
    /// If a length exceeds `keys`.
    pub fn cross(key_lengths: Vec<usize>, queries: usize, keys: usize) -> Self {
        Self::full(key_lengths, queries, keys, Direction::Cross)
    }

    fn full(
        key_lengths: Vec<usize>,
        queries: usize,
        keys: usize,
        direction: fn(Vec<usize>) -> Direction,
    ) -> Self {
        for length in &key_lengths {
            assert!(
                *length <= keys,
                "a row of length {length} exceeds the {keys} keys"
            );
        }
        Self::from_layout(Layout {
            position_offsets: vec![0],
            queries,
            keys,
            direction: direction(collapse(key_lengths)),
            segments: Vec::new(),
        })
    }

    /// Makes the first `lengths[row]` keys of a causal mask visible to every query of the row: the
    /// prompt is bidirectional and the rest causal (a prefix language model; Raffel et al. 2020,
    /// arXiv 1910.10683, section 3.2.1). A single length applies to all rows, and a length beyond
    /// the row's last query means the whole row.
    ///
    /// With a KV cache, the first pass must contain the whole prefix: later passes do not recompute
    /// the outputs of earlier queries.
    ///
    /// ```
    /// use nextword_kernels::AttentionMask;
    ///
    /// let mask = AttentionMask::causal(vec![0], 5).with_prefix(vec![3]);
    /// assert_eq!(mask.visible_keys(0, 0, None), 0..3);
    /// assert_eq!(mask.visible_keys(0, 3, None), 0..4);
    /// ```
    ///
    /// # Panics
    /// If the mask is not causal, has segments (give each [`Segment`] its own prefix), or has
    /// another number of rows.
    #[must_use]
    pub fn with_prefix(self, lengths: Vec<usize>) -> Self {
        let layout = &self.0.layout;
        assert!(
            layout.direction == Direction::Causal && layout.segments.is_empty(),
            "a prefix needs a causal mask without segments"
        );
        self.check_rows(lengths.len());
        let per_row = |row: usize| {
            let len = layout.position_offset(row) + layout.queries;
            let prefix = *for_row(&lengths, row);
            Segments::new(&[Segment { len, prefix }])
        };
        let rows = self.rows().max(lengths.len());
        let segments = (0..rows).map(per_row).collect();
        self.with_row_segments(segments)
    }

    /// Restricts each query to the keys of its own segment, for several samples packed into a row
    /// (Krell et al. 2021, arXiv 2107.02027). `rows[row]` has the segments of a row in order,
    /// starting at position 0; a single row applies to all. Positions after the last segment are
    /// padding, which attends to nothing.
    ///
    /// In a causal mask, a segment may have a bidirectional [prefix](Segment::prefix).
    ///
    /// ```
    /// use nextword_kernels::{AttentionMask, Segment};
    ///
    /// let segments = vec![Segment::new(3), Segment::new(4).with_prefix(2)];
    /// let mask = AttentionMask::causal(vec![0], 8).with_segments(&[segments]);
    /// assert_eq!(mask.visible_keys(0, 2, None), 0..3);
    /// assert_eq!(mask.visible_keys(0, 3, None), 3..5); // sees the whole prefix
    /// assert_eq!(mask.visible_keys(0, 6, None), 3..7);
    /// assert!(mask.visible_keys(0, 7, None).is_empty()); // padding
    /// ```
    ///
    /// # Panics
    /// If the mask is one of encoder-decoder attention, already has segments or a prefix, or has
    /// another number of rows, or if the segments of a row are longer than its positions, which end
    /// with its last query.
    #[must_use]
    pub fn with_segments(self, rows: &[Vec<Segment>]) -> Self {
        let layout = &self.0.layout;
        assert!(
            !matches!(layout.direction, Direction::Cross(_)) && layout.segments.is_empty(),
            "segments need a causal or bidirectional mask without segments and prefix"
        );
        self.check_rows(rows.len());
        let rows: Vec<Segments> = rows.iter().map(|row| Segments::new(row)).collect();
        let count = if rows.is_empty() {
            0
        } else {
            self.rows().max(rows.len())
        };
        for row in 0..count {
            let len = for_row(&rows, row).len();
            let keys = layout.position_offset(row) + layout.queries;
            assert!(
                len <= keys,
                "segments of {len} positions exceed the {keys} keys of row {row}"
            );
        }
        self.with_row_segments(rows)
    }

    fn with_row_segments(self, segments: Vec<Segments>) -> Self {
        Self::from_layout(Layout {
            segments: collapse(segments),
            ..self.0.layout.clone()
        })
    }

    /// Panics unless a property given for `given` rows can be added to this mask.
    fn check_rows(&self, given: usize) {
        let rows = self.rows();
        assert!(
            rows == 1 || given == 1 || given == rows,
            "{given} rows do not fit a mask of {rows} rows"
        );
    }

    fn from_layout(layout: Layout) -> Self {
        Self(Arc::new(Shared {
            layout,
            tensors: MaskTensors::default(),
            #[cfg(feature = "gpu")]
            ranges: gpu_ranges::GpuRanges::default(),
        }))
    }

    /// Number of rows; 1 if all rows of the batch agree.
    pub fn rows(&self) -> usize {
        self.0.layout.rows()
    }

    /// Position of the first query of each row; a single element if all rows agree.
    pub fn position_offsets(&self) -> &[usize] {
        &self.0.layout.position_offsets
    }

    /// Position of the first query of a row.
    pub fn position_offset(&self, row: usize) -> usize {
        self.0.layout.position_offset(row)
    }

    /// The position of each query in its segment, `[rows, queries]` flat, if a row has several segments: counted from
    /// 0 in each of them, and in the padding after the last one. `None` if the position of query `i` is
    /// `position_offset(row) + i` in all rows.
    ///
    /// ```
    /// use nextword_kernels::{AttentionMask, Segment};
    ///
    /// let mask = AttentionMask::causal(vec![0], 6);
    /// assert_eq!(mask.segment_positions(), None);
    /// let mask = mask.with_segments(&[vec![Segment::new(2), Segment::new(3)]]);
    /// assert_eq!(mask.segment_positions(), Some(vec![0, 1, 0, 1, 2, 0]));
    /// ```
    pub fn segment_positions(&self) -> Option<Vec<usize>> {
        self.0.layout.segment_positions()
    }

    /// Number of queries per row.
    pub fn queries(&self) -> usize {
        self.0.layout.queries
    }

    /// Number of keys per row, padding included. In a causal mask, this is the number of keys
    /// visible to the last query of the longest row, including itself.
    pub fn keys(&self) -> usize {
        self.0.layout.keys
    }

    /// The keys that query `query` of row `row` attends to in a layer with this sliding window. Both
    /// ends never decrease from one query to the next.
    ///
    /// ```
    /// use nextword_kernels::AttentionMask;
    ///
    /// let mask = AttentionMask::causal(vec![10], 4);
    /// assert_eq!(mask.visible_keys(0, 3, Some(6)), 8..14);
    /// ```
    pub fn visible_keys(&self, row: usize, query: usize, window: Option<usize>) -> Range<usize> {
        self.0.layout.visible_keys(row, query, window)
    }

    /// Whether the visible keys of a query at position `p` are `0..p + 1`, apart from the window.
    pub(crate) fn is_plain_causal(&self) -> bool {
        self.0.layout.direction == Direction::Causal && self.0.layout.segments.is_empty()
    }

    /// Whether a query may attend to keys after its own position.
    pub(crate) fn has_later_keys(&self) -> bool {
        self.0.layout.has_later_keys()
    }

    /// Panics unless the mask fits `batch` rows of `queries` queries and `keys` keys, and unless the
    /// window has at least one key.
    pub(crate) fn check(&self, [batch, queries, keys]: [usize; 3], window: Option<usize>) {
        let rows = self.rows();
        assert!(
            (rows == 1 || rows == batch) && self.queries() == queries && self.keys() == keys,
            "a mask of {rows} rows, {} queries and {} keys does not fit a batch of {batch} rows, \
             {queries} queries and {keys} keys",
            self.queries(),
            self.keys()
        );
        assert!(window != Some(0), "a sliding window needs at least one key");
    }

    /// What `build` returns: the ranges of visible keys as a GPU kernel reads them. Kept for all layers with
    /// the same window and bits of `ALiBi` slopes on the same device.
    #[cfg(feature = "gpu")]
    pub(crate) fn on_gpu(
        &self,
        window: Option<usize>,
        slopes: &[u32],
        device: &burn_cubecl::CubeDevice,
        build: impl FnOnce() -> burn_cubecl::tensor::CubeTensor,
    ) -> burn_cubecl::tensor::CubeTensor {
        self.0.ranges.get_or_build(window, slopes, device, build)
    }

    /// Adds the ALiBi bias (empty `slopes`: none) and sets the scores of masked keys to minus
    /// infinity. `scores` is `[rows, n_heads, queries, keys]`.
    pub(crate) fn apply(
        &self,
        scores: Tensor<4>,
        window: Option<usize>,
        slopes: &[f64],
    ) -> Tensor<4> {
        let Shared {
            layout, tensors, ..
        } = &*self.0;
        let scores = tensors.add_alibi(layout, scores, slopes);
        tensors.mask_scores(layout, scores, window)
    }

    /// The softmax over the keys of masked scores; 0 for queries without visible keys.
    pub(crate) fn softmax(&self, scores: Tensor<4>, window: Option<usize>) -> Tensor<4> {
        let Shared {
            layout, tensors, ..
        } = &*self.0;
        tensors.softmax(layout, scores, window)
    }
}

/// Reduces equal elements to one.
fn collapse<T: PartialEq>(mut rows: Vec<T>) -> Vec<T> {
    if rows.iter().all(|row| *row == rows[0]) {
        rows.truncate(1);
    }
    rows
}
