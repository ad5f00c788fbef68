//! Causal attention with grouped queries, without ever storing the scores.
//!
//! A unit of work is a block of 64 queries of one head. Scores are kept transposed, `[key][query]`,
//! so that each query has its own lane: the softmax needs no sums across lanes, keys and values
//! are read where they lie, and only the block's queries are transposed into scratch.
//!
//! Tri Dao et al. 2022, `FlashAttention` (arXiv 2205.14135), is where the order of work comes from.

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

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Queries of each sequence.
    pub seq_q: usize,
    /// Keys of each sequence.
    pub seq_k: usize,
    /// Heads of queries.
    pub n_heads: usize,
    /// Heads of keys and values; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Numbers of each head.
    pub head_dim: usize,
}

impl Shape {
    /// Heads of queries that share one of keys.
    fn group(&self) -> usize {
        assert_eq!(self.n_heads % self.n_kv_heads, 0, "heads in whole groups");
        self.n_heads / self.n_kv_heads
    }
}

/// What keys a query sees, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Squashes the scaled scores into (-c, c) by `c * tanh(score / c)`.
    pub soft_cap: Option<f32>,
    /// For each sequence the place of its query 0 among the keys (empty: 0): query i sees the
    /// keys up to place `offset + i`.
    pub offsets: &'a [usize],
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
    /// For each head the slope of its bias `-slope * distance` (empty: none).
    pub alibi: &'a [f32],
    /// Dropout on the softmax percentages.
    pub dropout: Option<Dropout>,
}

impl Options<'_> {
    /// Causal attention, nothing else.
    pub fn causal(scale: f32) -> Self {
        Self {
            scale,
            soft_cap: None,
            offsets: &[],
            window: None,
            alibi: &[],
            dropout: None,
        }
    }

    fn check(&self, shape: &Shape) {
        assert!(self.offsets.is_empty() || self.offsets.len() == shape.batch);
        assert!(self.alibi.is_empty() || self.alibi.len() == shape.n_heads);
        assert!(self.window != Some(0), "a window of 0 sees nothing");
    }
}

/// Dropout on the softmax percentages.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Which masks.
    pub mask: super::dropout::Mask,
    /// Number of the first sequence within the training step.
    pub first_sequence: u64,
}
