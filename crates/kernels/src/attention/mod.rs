//! Causal attention with grouped key/value heads.

#[cfg(feature = "flex")]
mod fast;

use burn::tensor::Tensor;

use crate::{AttentionMask, CounterRng};

/// How queries see keys.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// Factor on the similarities, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Squashes the scaled similarities into (-c, c) by `c * tanh(scores / c)`.
    pub soft_cap: Option<f64>,
    /// Where the tokens stand.
    pub mask: &'a AttentionMask,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
    /// For each head the slope of ALiBi's bias `-slope * distance`; empty for none.
    pub alibi: &'a [f64],
    /// Dropout on the percentages.
    pub dropout: Option<AttentionDropout>,
}

/// Dropout on the percentages. The mask's place of a percentage is its place in the array
/// `[sequence, n_heads, query, key]` of the whole step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDropout {
    /// The stream that decides.
    pub rng: CounterRng,
    /// The share that is dropped.
    pub rate: f64,
    /// Number of the first row within the step.
    pub first_sequence: u64,
}

/// What [`reference::attention`](crate::reference::attention) shows on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Scaled similarities, minus infinity where hidden.
    Scores,
    /// The softmax of the scores.
    Pattern,
}

/// `softmax(cap(scale q k^T), future hidden) v` for each head: `q` is `[batch, seq, n_heads, head_dim]`,
/// `k` and `v` `[batch, keys, n_kv_heads, head_dim]`; the result is shaped like `q`.
///
/// Consecutive query heads share a key/value head (Ainslie et al. 2023, arXiv 2305.13245). The fast
/// body never stores the scores (Dao et al. 2022, arXiv 2205.14135).
pub fn attention(qkv: [Tensor<4>; 3], options: &AttentionOptions<'_>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&qkv[0]) {
        return fast::attention(qkv, options);
    }
    crate::reference::attention(qkv, options, |_, _| {})
}
