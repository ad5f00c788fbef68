//! Grouped-query attention.

#[cfg(feature = "flex")]
mod fast;
mod paged;
#[cfg(all(test, feature = "flex"))]
mod paged_tests;
#[cfg(all(test, feature = "flex"))]
pub(crate) mod tests;

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
pub(crate) use fast::decode_pages_of;
pub use paged::attention_paged;
pub(crate) use paged::check_pages;

use crate::AttentionOptions;

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
/// If the shapes do not match, `n_heads` is not a multiple of `n_kv_heads`, the mask does not fit, or
/// the window is 0.
pub fn attention(qkv: [Tensor<4>; 3], options: &AttentionOptions<'_>) -> Tensor<4> {
    options.check(&qkv);
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&qkv[0]) {
        return fast::attention(qkv, options);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&qkv[0]) && crate::gpu::attention::supports(&qkv[0], &qkv[1]) {
        return crate::gpu::attention::attention(qkv, options);
    }
    crate::reference::attention(qkv, options, |_, _| {})
}
