//! Causal grouped-query attention that never stores the scores.
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
mod softmax;
mod tile;
mod weights;

pub use backward::{Grads, Saved, backward};
pub use decode::{DecodeOptions, KvCache, decode};
pub use forward::forward;

/// Sizes of an attention operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seq_q: usize,
    /// Keys per sequence.
    pub seq_k: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
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
pub struct Options<'a> {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Soft cap of the scaled scores: maps them to (-c, c) by `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// Position of each sequence's first query among the keys (empty: 0). Query i attends to keys up
    /// to position `offset + i`.
    pub offsets: &'a [usize],
    /// Maximum number of keys that a query attends to, including its own (sliding window).
    pub window: Option<usize>,
    /// ALiBi slope of each head: adds `-slope * distance` to the scores. Empty for none.
    pub alibi: &'a [f32],
    /// Dropout on the attention weights.
    pub dropout: Option<Dropout>,
}

impl Options<'_> {
    fn check(&self, shape: &Shape) {
        assert!(self.offsets.is_empty() || self.offsets.len() == shape.batch);
        assert!(self.alibi.is_empty() || self.alibi.len() == shape.n_heads);
        assert!(self.window != Some(0), "the window must not be 0");
    }
}

/// Dropout on the attention weights.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Rate and random stream of the mask.
    pub mask: super::dropout::Mask,
    /// Index of the first sequence within the training step.
    pub first_sequence: u64,
}
