//! Attention over the pages of a KV cache.

use burn::tensor::Tensor;

use super::attention;
use crate::{AttentionOptions, gather_pages};

/// [`attention`] with keys and values in the pages of a cache: `q` is `[rows, seq, n_heads, head_dim]`, the
/// two parts of `cache` are `[pages, n_kv_heads, page_len, head_dim]`, and row i attends to the tokens of
/// `pages[i]`, as many as the mask says. The result has the bits of [`attention`] over one run of the same
/// tokens.
///
/// On the CPU and on GPUs, single queries read the pages in place. Several queries per row, and other devices,
/// copy them into one run first.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{AttentionMask, AttentionOptions, attention_paged};
///
/// let device = Device::flex();
/// // Three positions in pages 1 and 0 of two tokens. All scores are 0, so the query averages the values.
/// let keys = Tensor::<4>::zeros([2, 1, 2, 1], &device);
/// let values = Tensor::<4>::from_floats([[[[6.0], [9.0]]], [[[1.0], [2.0]]]], &device);
/// let mask = AttentionMask::causal(vec![2], 1);
/// let options = AttentionOptions {
///     scale: 1.0,
///     soft_cap: None,
///     mask: &mask,
///     window: None,
///     alibi: &[],
///     dropout: None,
/// };
/// let q = Tensor::zeros([1, 1, 1, 1], &device);
/// let z = attention_paged(q, [&keys, &values], &[&[1, 0]], &options);
/// assert_eq!(z.into_scalar::<f32>(), 3.0);
/// ```
///
/// # Panics
/// As [`attention`]; also if a page does not exist or a row has too few pages.
pub fn attention_paged(
    q: Tensor<4>,
    cache: [&Tensor<4>; 2],
    pages: &[&[usize]],
    options: &AttentionOptions<'_>,
) -> Tensor<4> {
    assert_eq!(
        cache[0].dims(),
        cache[1].dims(),
        "keys and values differ in shape"
    );
    check_pages(q.dims(), cache[0].dims(), pages, options);
    #[cfg(feature = "flex")]
    if q.dims()[1] == 1 && options.dropout.is_none() && crate::fused::is_flex_f32(&q) {
        return super::fast::decode_pages(q, cache, pages, options);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::attention::supports_pages(&q, cache[0], options) {
        return crate::gpu::attention::attention_paged(q, cache, pages, options);
    }
    #[cfg(feature = "gpu")]
    if cache.iter().all(|x| crate::gpu::is_gpu_f32(*x)) && !cache[0].device().is_autodiff() {
        let [k, v] = crate::gpu::kv_cache::gather(cache, pages, options.mask.keys());
        return attention([q, k, v], options);
    }
    let keys = options.mask.keys();
    let [k, v] = cache.map(|x| gather_pages(x, pages, keys).swap_dims(1, 2));
    attention([q, k, v], options)
}

/// Panics unless queries, mask and pages fit a cache of shape `[_, n_kv_heads, page_len, _]`.
pub(crate) fn check_pages(
    [rows, seq, n_heads, _]: [usize; 4],
    [_, n_kv_heads, page_len, _]: [usize; 4],
    pages: &[&[usize]],
    options: &AttentionOptions<'_>,
) {
    assert_eq!(pages.len(), rows, "one list of pages for each row");
    assert_eq!(
        n_heads.checked_rem(n_kv_heads),
        Some(0),
        "{n_heads} query heads are not a multiple of {n_kv_heads} key/value heads"
    );
    let keys = options.mask.keys();
    options.mask.check([rows, seq, keys], options.window);
    for (row, pages) in pages.iter().enumerate() {
        let last = seq.saturating_sub(1);
        let end = options.mask.visible_keys(row, last, None).end;
        assert!(
            end <= pages.len() * page_len,
            "row {row} has pages for {} tokens, not {end}",
            pages.len() * page_len
        );
    }
}
