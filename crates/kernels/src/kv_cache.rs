//! Writes the keys or values of new tokens to a paged KV cache, and reads them as one run.
//!
//! A cache is `[pages, heads, page_len, head_dim]`. The token at position `p` of a sequence is in the page
//! `pages[p / page_len]` of that sequence, at `p % page_len`.

use burn::tensor::{Int, Tensor, TensorData};

/// Writes `new`, `[rows, heads, seq, head_dim]`, to `cache`, `[pages, heads, page_len, head_dim]`: the
/// tokens of row i get the positions from `starts[i]` on of the sequence whose pages are `pages[i]`. The
/// cache is updated in place unless other tensors share its storage.
///
/// Rows must not write the same position of a page: then either may be stored.
///
/// # Panics
/// If a page does not exist, the tokens do not fit into the row's pages, the shapes do not match, or
/// `pages` or `starts` do not have one element for each row.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::write_cache;
///
/// let device = Device::flex();
/// let cache = Tensor::<4>::zeros([3, 1, 4, 3], &device); // [pages, heads, page_len, head_dim]
/// let new = Tensor::<4>::ones([1, 1, 2, 3], &device); // two tokens of one sequence
/// let cache = write_cache(cache, new, &[&[2, 0]], &[3]); // positions 3 and 4: pages 2 and 0
/// assert_eq!(cache.clone().sum().into_scalar::<f32>(), 6.0);
/// assert_eq!(cache.clone().narrow(0, 2, 1).narrow(2, 3, 1).sum().into_scalar::<f32>(), 3.0);
/// assert_eq!(cache.narrow(0, 0, 1).narrow(2, 0, 1).sum().into_scalar::<f32>(), 3.0);
/// ```
pub fn write_cache(
    cache: Tensor<4>,
    new: Tensor<4>,
    pages: &[&[usize]],
    starts: &[usize],
) -> Tensor<4> {
    check_starts(cache.dims(), new.dims(), pages, starts);
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&cache) && crate::fused::is_flex_f32(&new) {
        return fast::write(cache, new, pages, starts);
    }
    let ([_, heads, page_len, head_dim], seq) = (cache.dims(), new.dims()[2]);
    let rows = pages.iter().zip(starts).enumerate();
    rows.fold(cache, |mut cache, (row, (pages, start))| {
        let mut token = 0;
        while token < seq {
            let (page, at) = page_of(pages, start + token, page_len);
            let count = (page_len - at).min(seq - token);
            let range = [page..page + 1, 0..heads, at..at + count, 0..head_dim];
            let values = new.clone().narrow(0, row, 1).narrow(2, token, count);
            cache = cache.slice_assign(range, values);
            token += count;
        }
        cache
    })
}

/// [`write_cache`] for the keys and the values of a cache, which is one kernel on GPUs.
///
/// # Panics
/// As [`write_cache`]; also if keys and values differ in shape.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::write_keys_values;
///
/// let device = Device::flex();
/// let cache = || Tensor::<4>::zeros([1, 1, 4, 2], &device);
/// let new = |value: f32| Tensor::<4>::full([1, 1, 1, 2], value, &device);
/// let written = write_keys_values([cache(), cache()], [new(1.0), new(2.0)], &[&[0]], &[3]);
/// assert_eq!(written.map(|x| x.sum().into_scalar::<f32>()), [2.0, 4.0]);
/// ```
pub fn write_keys_values(
    cache: [Tensor<4>; 2],
    new: [Tensor<4>; 2],
    pages: &[&[usize]],
    starts: &[usize],
) -> [Tensor<4>; 2] {
    assert!(
        cache[0].dims() == cache[1].dims() && new[0].dims() == new[1].dims(),
        "keys and values differ in shape"
    );
    #[cfg(feature = "gpu")]
    if cache.iter().chain(&new).all(crate::gpu::is_gpu_f32) {
        check_starts(cache[0].dims(), new[0].dims(), pages, starts);
        return crate::gpu::kv_cache::write(cache, new, pages, starts);
    }
    let ([keys, values], [k, v]) = (cache, new);
    [(keys, k), (values, v)].map(|(cache, new)| write_cache(cache, new, pages, starts))
}

/// Panics unless rows of shape `new` fit into their pages of a cache.
pub(crate) fn check_starts(
    cache @ [_, heads, page_len, head_dim]: [usize; 4],
    [rows, new_heads, seq, new_dim]: [usize; 4],
    pages: &[&[usize]],
    starts: &[usize],
) {
    assert_eq!(
        [new_heads, new_dim],
        [heads, head_dim],
        "the new tokens and the cache differ in number or size of heads"
    );
    assert!(
        pages.len() == rows && starts.len() == rows,
        "the pages of {} rows and {} starts for {rows} rows",
        pages.len(),
        starts.len()
    );
    for (pages, start) in pages.iter().zip(starts) {
        check_pages(cache, pages);
        let capacity = pages.len() * page_len;
        let end = start.checked_add(seq);
        assert!(
            end.is_some_and(|end| end <= capacity),
            "{seq} tokens from position {start} on exceed pages for {capacity}"
        );
    }
}

/// Panics unless `pages` exist in a cache of this shape.
pub(crate) fn check_pages([count, ..]: [usize; 4], pages: &[usize]) {
    if let Some(page) = pages.iter().find(|page| **page >= count) {
        panic!("page {page} of {count}");
    }
}

/// The page of `position` in a sequence, and the position in the page.
pub(crate) fn page_of(pages: &[usize], position: usize, page_len: usize) -> (usize, usize) {
    (pages[position / page_len], position % page_len)
}

/// The first `len` keys or values of several sequences as one tensor, `[rows, heads, len, head_dim]`, from
/// `cache`, `[pages, heads, page_len, head_dim]`; row i reads `pages[i]`. What follows the end of a row's
/// pages is unspecified but finite if the row is.
///
/// # Panics
/// If a page does not exist, or there are no rows.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::gather_pages;
///
/// let device = Device::flex();
/// let cache = Tensor::<4>::from_floats([[[[1.0], [2.0]]], [[[3.0], [4.0]]]], &device); // 2 pages of 2 tokens
/// let row = gather_pages(&cache, &[&[1, 0]], 3);
/// assert_eq!(row.into_data().try_to_vec::<f32>().unwrap(), [3.0, 4.0, 1.0]);
/// ```
pub fn gather_pages(cache: &Tensor<4>, pages: &[&[usize]], len: usize) -> Tensor<4> {
    for pages in pages {
        check_pages(cache.dims(), pages);
    }
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(cache) {
        return fast::gather(cache, pages, len);
    }
    let [_, heads, page_len, head_dim] = cache.dims();
    let per_row = len.div_ceil(page_len);
    let filler = |pages: &[usize]| pages.first().copied().unwrap_or(0);
    let indices = pages.iter().flat_map(|pages| {
        let beyond = std::iter::repeat(filler(pages));
        pages.iter().copied().chain(beyond).take(per_row)
    });
    let indices: Vec<i32> = indices.map(|page| page as i32).collect();
    let data = TensorData::new(indices, [pages.len() * per_row]);
    let indices = Tensor::<1, Int>::from_data(data, &cache.device());
    let shape = [pages.len(), per_row, heads, page_len, head_dim];
    let selected = cache.clone().select(0, indices).reshape(shape);
    let runs = selected.swap_dims(1, 2);
    let shape = [pages.len(), heads, per_row * page_len, head_dim];
    runs.reshape(shape).narrow(2, 0, len)
}

#[cfg(feature = "flex")]
mod fast {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::Tensor;

    use super::page_of;
    use crate::cpu::attention::{PageElements, PagedCache, gather as gather_kernel};
    use crate::fused::{Buffer, from_buffer, values};

    pub(super) fn write(
        cache: Tensor<4>,
        new: Tensor<4>,
        pages: &[&[usize]],
        starts: &[usize],
    ) -> Tensor<4> {
        let ([_, heads, page_len, dim], seq) = (cache.dims(), new.dims()[2]);
        let (mut cache, mut new) = (primitive(cache), primitive(new));
        if !cache.is_contiguous() || cache.layout().start_offset() != 0 {
            cache = cache.to_contiguous();
        }
        if new.layout().strides()[3] != 1 {
            new = new.to_contiguous();
        }
        let stride = |axis: usize| new.layout().strides()[axis].unsigned_abs();
        let base = new.layout().start_offset();
        let source: &[f32] = new.storage();
        let target: &mut [f32] = cache.storage_mut();
        for (row, (pages, start)) in pages.iter().zip(starts).enumerate() {
            for token in 0..seq {
                let (page, at) = page_of(pages, start + token, page_len);
                for head in 0..heads {
                    let to = ((page * heads + head) * page_len + at) * dim;
                    let from = base + row * stride(0) + head * stride(1) + token * stride(2);
                    target[to..][..dim].copy_from_slice(&source[from..][..dim]);
                }
            }
        }
        Tensor::from_primitive::<Flex>(cache)
    }

    pub(super) fn gather(cache: &Tensor<4>, pages: &[&[usize]], len: usize) -> Tensor<4> {
        let [_, heads, page_len, head_dim] = cache.dims();
        let cache = primitive(cache.clone()).to_contiguous();
        let elements = PageElements::F32(values(&cache));
        let cache = PagedCache {
            keys: elements,
            values: elements,
            n_kv_heads: heads,
            page_len,
            head_dim,
        };
        let mut out = Buffer::new(pages.len() * heads * len * head_dim);
        gather_kernel(&cache, pages, len, &mut out);
        let shape = [pages.len(), heads, len, head_dim];
        Tensor::from_primitive::<Flex>(from_buffer(out, shape))
    }

    fn primitive(x: Tensor<4>) -> FlexTensor {
        let x = x.try_into_primitive::<Flex>();
        x.unwrap_or_else(|e| unreachable!("the caller checked `is_flex_f32`: {e:?}"))
    }
}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};

    use super::{gather_pages, write_cache};

    fn random(shape: [usize; 4]) -> Tensor<4> {
        Tensor::<4>::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
    }

    fn values(x: Tensor<4>) -> Vec<f32> {
        x.into_data().try_into_vec::<f32>().unwrap()
    }

    /// Compares with a scalar loop over all elements.
    #[test]
    fn write_cache_changes_only_the_target_positions() {
        let (count, heads, page_len, dim) = (9, 3, 4, 5);
        let pages: [&[usize]; 3] = [&[4, 1], &[0], &[8, 2, 5]];
        for (seq, starts) in [(1, [7, 0, 8]), (3, [2, 1, 7]), (2, [3, 0, 3])] {
            let cache = random([count, heads, page_len, dim]);
            // The layout that attention produces: tokens before heads.
            let new = random([3, seq, heads, dim]).swap_dims(1, 2);
            let written = write_cache(cache.clone(), new.clone(), &pages, &starts);
            let [original, new, written] = [cache, new, written].map(values);
            let mut expected = original;
            for row in 0..3 {
                for head in 0..heads {
                    for token in 0..seq {
                        let position: usize = starts[row] + token;
                        let page = pages[row][position / page_len];
                        let to = (page * heads + head) * page_len + position % page_len;
                        let from = (row * heads + head) * seq + token;
                        for i in 0..dim {
                            expected[to * dim + i] = new[from * dim + i];
                        }
                    }
                }
            }
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn what_was_written_to_pages_is_gathered_in_order() {
        let pages: [&[usize]; 2] = [&[3, 0, 6], &[1, 2]];
        for (len, lens) in [(10, [10, 7]), (4, [4, 4]), (1, [1, 1]), (12, [12, 8])] {
            let new = random([2, 2, len, 3]);
            let cache = write_cache(
                random([7, 2, 4, 3]),
                new.clone().narrow(0, 0, 1),
                &[pages[0]],
                &[0],
            );
            let second = new.clone().narrow(0, 1, 1).narrow(2, 0, lens[1]);
            let cache = write_cache(cache, second, &[pages[1]], &[0]);
            let gathered = gather_pages(&cache, &pages, len);
            for (row, len) in lens.into_iter().enumerate() {
                let part = |x: &Tensor<4>| values(x.clone().narrow(0, row, 1).narrow(2, 0, len));
                assert_eq!(part(&gathered), part(&new), "row {row} of {len}");
            }
        }
    }
}
