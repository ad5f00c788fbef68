//! Causal grouped-query attention.

#[cfg(feature = "flex")]
mod fast;

use burn::tensor::Tensor;

use crate::{AttentionMask, CounterRng};

/// Options of [`attention()`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Soft cap of the scaled scores: maps them to (-c, c) by `c * tanh(score / c)`.
    pub soft_cap: Option<f64>,
    /// The causal mask.
    pub mask: &'a AttentionMask,
    /// Maximum number of keys that a query attends to, including its own (sliding window).
    pub window: Option<usize>,
    /// ALiBi slope of each head: adds `-slope * distance` to the scores. Empty for none.
    pub alibi: &'a [f64],
    /// Dropout on the attention weights.
    pub dropout: Option<AttentionDropout>,
}

/// Dropout on the attention weights. An attention weight's stream position is its index in the
/// array `[sequence, n_heads, query, key]` of the whole training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDropout {
    /// The random stream.
    pub rng: CounterRng,
    /// Probability of dropping a weight.
    pub rate: f64,
    /// Index of the first row within the training step.
    pub first_sequence: u64,
}

/// A value that [`reference::attention`](crate::reference::attention) passes to its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Scaled scores, minus infinity where masked.
    Scores,
    /// Attention weights: the softmax of the scores ("pattern" in TransformerLens).
    Pattern,
}

/// `softmax(mask(cap(scale * q k^T) + bias)) v` for each head.
///
/// `q` is `[batch, seq, n_heads, head_dim]`, `k` and `v` are `[batch, keys, n_kv_heads, head_dim]`;
/// the output has the shape of `q`.
///
/// Consecutive query heads share a key/value head (Ainslie et al. 2023, arXiv 2305.13245). The fast
/// implementation never stores the scores (Dao et al. 2022, arXiv 2205.14135).
pub fn attention(qkv: [Tensor<4>; 3], options: &AttentionOptions<'_>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&qkv[0]) {
        return fast::attention(qkv, options);
    }
    crate::reference::attention(qkv, options, |_, _| {})
}
