//! Options of attention.

use burn::tensor::Tensor;

use crate::{AttentionMask, CounterRng};

/// Options of [`attention`](crate::attention()).
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Soft cap of the scaled scores: maps them to (-c, c) by `c * tanh(score / c)`.
    pub soft_cap: Option<f64>,
    /// Which keys each query attends to.
    pub mask: &'a AttentionMask,
    /// Sliding window: a query attends to keys at a distance of less than this, on the side or sides
    /// that the mask allows. In a causal mask it is the maximum number of keys, including its own.
    pub window: Option<usize>,
    /// ALiBi slope of each head: adds `-slope * abs(distance)` to the scores. Empty for none. Where
    /// a query attends to later keys, too, the bias is symmetric, as in Günther et al. 2023
    /// (arXiv 2310.19923), section 4.1.
    pub alibi: &'a [f64],
    /// Dropout on the attention weights.
    pub dropout: Option<AttentionDropout>,
}

impl AttentionOptions<'_> {
    /// Panics unless shapes and mask agree.
    pub(crate) fn check(&self, [q, k, v]: &[Tensor<4>; 3]) {
        let [batch, seq, n_heads, head_dim] = q.dims();
        let [key_batch, keys, n_kv_heads, key_dim] = k.dims();
        assert_eq!(k.dims(), v.dims(), "keys and values differ in shape");
        assert_eq!(key_batch, batch, "queries and keys differ in batch size");
        assert_eq!(key_dim, head_dim, "queries and keys differ in head size");
        assert_eq!(
            n_heads.checked_rem(n_kv_heads),
            Some(0),
            "{n_heads} query heads are not a multiple of {n_kv_heads} key/value heads"
        );
        self.mask.check([batch, seq, keys], self.window);
    }
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
