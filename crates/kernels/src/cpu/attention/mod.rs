//! Grouped-query attention that never stores the scores, for every kind of attention mask.
//!
//! A task is a block of 64 queries of one head. Scores are transposed, `[key][query]`, so that each
//! query has its own lane: the softmax needs no reductions across lanes, keys and values are read
//! in place, and only the queries of the block are transposed into scratch.
//!
//! The order of computation follows `FlashAttention` (Dao et al. 2022, arXiv 2205.14135).

mod backward;
mod backward_block;
mod block;
mod decode;
mod dropout;
mod forward;
mod mask;
mod pages;
mod query_ranges;
mod sizes;
mod softmax;
mod tile;
mod weights;

pub(crate) use backward::{Grads, Saved, backward};
pub(crate) use decode::{DecodeOptions, DecodeRow, decode};
pub(crate) use forward::forward;
pub(crate) use pages::{PageElements, PagedCache, gather};

use crate::AttentionMask;

/// Sizes of an attention operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Number of sequences.
    pub(crate) batch: usize,
    /// Queries per sequence.
    pub(crate) seq_q: usize,
    /// Keys per sequence.
    pub(crate) seq_k: usize,
    /// Number of query heads.
    pub(crate) n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub(crate) n_kv_heads: usize,
    /// Elements per head.
    pub(crate) head_dim: usize,
}

impl Shape {
    /// Number of query heads that share a key/value head.
    fn group(&self) -> usize {
        assert_eq!(
            self.n_heads % self.n_kv_heads,
            0,
            "n_heads must be a multiple of n_kv_heads"
        );
        self.n_heads / self.n_kv_heads
    }
}

/// Scale, masking and dropout of an attention operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub(crate) scale: f32,
    /// Soft cap of the scaled scores: maps them to (-c, c) by `c * tanh(score / c)`.
    pub(crate) soft_cap: Option<f32>,
    /// Which keys each query attends to. Keys beyond those of the operation are masked.
    pub(crate) mask: &'a AttentionMask,
    /// Sliding window; see [`AttentionMask`].
    pub(crate) window: Option<usize>,
    /// ALiBi slope of each head: adds `-slope * abs(distance)` to the scores. Empty for none.
    pub(crate) alibi: &'a [f32],
    /// Dropout on the attention weights.
    pub(crate) dropout: Option<Dropout>,
}

impl Options<'_> {
    fn check(&self, shape: &Shape) {
        let rows = self.mask.rows();
        assert!(
            rows == 1 || rows == shape.batch,
            "one row of the mask for each sequence"
        );
        assert_eq!(self.mask.queries(), shape.seq_q, "queries of the mask");
        assert!(self.alibi.is_empty() || self.alibi.len() == shape.n_heads);
        assert!(self.window != Some(0), "the window must not be 0");
    }
}

/// Dropout on the attention weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    /// Rate and random stream of the mask.
    pub(crate) mask: super::dropout::Mask,
    /// Index of the first sequence within the training step.
    pub(crate) first_sequence: u64,
}
