//! Grouped-query attention.

#[cfg(feature = "flex")]
mod fast;
#[cfg(all(test, feature = "flex"))]
mod tests;

use burn::tensor::Tensor;

use crate::{AttentionMask, CounterRng};

/// Options of [`attention()`].
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
/// the output has the shape of `q`. For encoder-decoder attention, `keys` differs from `seq`. A query
/// without any visible key gets 0.
///
/// Consecutive query heads share a key/value head (Ainslie et al. 2023, arXiv 2305.13245). The fast
/// implementation never stores the scores (Dao et al. 2022, arXiv 2205.14135).
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{AttentionMask, AttentionOptions, attention};
///
/// let device = Device::flex();
/// // Two positions, one head of width 1. All scores are 0, so a query averages what it sees.
/// let q = Tensor::<4>::zeros([1, 2, 1, 1], &device);
/// let v = Tensor::<4>::from_floats([[[[1.0]], [[3.0]]]], &device);
/// let attend = |mask: &AttentionMask| {
///     let options = AttentionOptions {
///         scale: 1.0,
///         soft_cap: None,
///         mask,
///         window: None,
///         alibi: &[],
///         dropout: None,
///     };
///     let z = attention([q.clone(), q.clone(), v.clone()], &options);
///     z.into_data().try_to_vec::<f32>().unwrap()
/// };
/// assert_eq!(attend(&AttentionMask::causal(vec![0], 2)), [1.0, 2.0]);
/// assert_eq!(attend(&AttentionMask::bidirectional(vec![2], 2)), [2.0, 2.0]);
/// # }
/// ```
///
/// # Panics
/// If the mask does not fit the shapes of `q` and `k`, or the window is 0.
pub fn attention(qkv: [Tensor<4>; 3], options: &AttentionOptions<'_>) -> Tensor<4> {
    check(&qkv, options);
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&qkv[0]) {
        return fast::attention(qkv, options);
    }
    crate::reference::attention(qkv, options, |_, _| {})
}

/// Panics unless shapes and mask agree.
pub(crate) fn check([q, k, v]: &[Tensor<4>; 3], options: &AttentionOptions<'_>) {
    let [batch, seq, _, _] = q.dims();
    assert_eq!(k.dims(), v.dims(), "keys and values differ in shape");
    options
        .mask
        .check([batch, seq, k.dims()[1]], options.window);
}
