//! Keys or values of a paged KV cache in 8 bits, with a scale for each head of each token.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::cpu::attention::{PageElements, PagedCache, gather};
use crate::kv_cache::{check_starts, page_of};
use crate::{AttentionOptions, attention};

/// Largest absolute value of an integer.
const MAX_INTEGER: f32 = 127.0;

/// The keys or the values of a cache, `[pages, heads, page_len, head_dim]`, as integers of 8 bits and a scale
/// for each head of each token. They are in the memory of the CPU.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::QuantizedPages;
///
/// let device = Device::flex();
/// let mut keys = QuantizedPages::new([2, 1, 4, 3]); // two pages of four tokens
/// keys.write(Tensor::from_floats([[[[127.0, -1.0, 0.4]]]], &device), &[&[1, 0]], &[4]);
/// let token = keys.gather(&[&[0]], 1, &device);
/// assert_eq!(token.into_data().try_to_vec::<f32>().unwrap(), [127.0, -1.0, 0.0]);
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedPages {
    integers: Vec<i8>,
    /// `[pages, heads, page_len]`.
    scales: Vec<f32>,
    shape: [usize; 4],
}

impl QuantizedPages {
    /// A cache of zeros of this shape, `[pages, heads, page_len, head_dim]`.
    pub fn new(shape @ [pages, heads, page_len, head_dim]: [usize; 4]) -> Self {
        let tokens = pages * heads * page_len;
        Self {
            integers: vec![0; tokens * head_dim],
            scales: vec![0.0; tokens],
            shape,
        }
    }

    /// Bytes of one token in one head.
    pub fn bytes_per_head(head_dim: usize) -> usize {
        head_dim * size_of::<i8>() + size_of::<f32>()
    }

    /// Writes `new`, `[rows, heads, seq, head_dim]`, as [`write_cache`](crate::write_cache) does. Each head of
    /// each token is rounded to a multiple of its largest absolute value divided by 127.
    ///
    /// # Panics
    /// As [`write_cache`](crate::write_cache).
    pub fn write(&mut self, new: Tensor<4>, pages: &[&[usize]], starts: &[usize]) {
        check_starts(self.shape, new.dims(), pages, starts);
        let ([_, heads, page_len, dim], seq) = (self.shape, new.dims()[2]);
        let new = new.cast(DType::F32).into_data();
        let Some(new) = new.as_slice::<f32>().ok() else {
            unreachable!("the tensor was cast to f32");
        };
        if dim == 0 {
            return;
        }
        for (index, token) in new.chunks_exact(dim).enumerate() {
            let (head, at) = (index / seq % heads, index % seq);
            let row = index / (seq * heads);
            let (page, offset) = page_of(pages[row], starts[row] + at, page_len);
            let target = (page * heads + head) * page_len + offset;
            self.scales[target] = quantize(token, &mut self.integers[target * dim..][..dim]);
        }
    }

    /// Adds `count` pages of zeros.
    pub fn add_pages(&mut self, count: usize) {
        let [pages, heads, page_len, head_dim] = self.shape;
        let tokens = (pages + count) * heads * page_len;
        self.integers.resize(tokens * head_dim, 0);
        self.scales.resize(tokens, 0.0);
        self.shape[0] = pages + count;
    }

    /// Replaces the contents of page `to` by those of page `from`.
    ///
    /// # Panics
    /// If a page does not exist.
    pub fn copy_page(&mut self, from: usize, to: usize) {
        let [_, heads, page_len, dim] = self.shape;
        let tokens = heads * page_len;
        let elements = tokens * dim;
        self.integers
            .copy_within(from * elements..(from + 1) * elements, to * elements);
        self.scales
            .copy_within(from * tokens..(from + 1) * tokens, to * tokens);
    }

    /// The first `len` keys or values of several sequences in one run, as
    /// [`gather_pages`](crate::gather_pages).
    ///
    /// # Panics
    /// As [`gather_pages`](crate::gather_pages).
    pub fn gather(&self, pages: &[&[usize]], len: usize, device: &Device) -> Tensor<4> {
        let [_, heads, _, head_dim] = self.shape;
        let mut out = vec![0.0; pages.len() * heads * len * head_dim];
        gather(&paged([self, self]), pages, len, &mut out);
        let shape = [pages.len(), heads, len, head_dim];
        Tensor::from_data(TensorData::new(out, shape), device)
    }
}

/// Rounds `token` to integers and returns their scale.
fn quantize(token: &[f32], integers: &mut [i8]) -> f32 {
    let largest = token
        .iter()
        .fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = largest / MAX_INTEGER;
    // Of values that are not finite, the scale tells: what is computed with it is not finite either.
    let scale = if token.iter().all(|x| x.is_finite()) {
        scale
    } else {
        f32::NAN
    };
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (integer, x) in integers.iter_mut().zip(token) {
        *integer = (x * inverse)
            .round_ties_even()
            .clamp(-MAX_INTEGER, MAX_INTEGER) as i8;
    }
    scale
}

fn paged<'a>([keys, values]: [&'a QuantizedPages; 2]) -> PagedCache<'a> {
    let elements = |x: &'a QuantizedPages| PageElements::Int8 {
        integers: &x.integers,
        scales: &x.scales,
    };
    let [_, n_kv_heads, page_len, head_dim] = keys.shape;
    PagedCache {
        keys: elements(keys),
        values: elements(values),
        n_kv_heads,
        page_len,
        head_dim,
    }
}

/// [`attention_paged`](crate::attention_paged) with keys and values of 8 bits.
///
/// # Panics
/// As [`attention_paged`](crate::attention_paged).
pub fn attention_paged_quantized(
    q: Tensor<4>,
    cache: [&QuantizedPages; 2],
    pages: &[&[usize]],
    options: &AttentionOptions<'_>,
) -> Tensor<4> {
    assert_eq!(
        cache[0].shape, cache[1].shape,
        "keys and values differ in shape"
    );
    crate::attention::check_pages(q.dims(), cache[0].shape, pages, options);
    #[cfg(feature = "flex")]
    if q.dims()[1] == 1 && options.dropout.is_none() && crate::fused::is_flex_f32(&q) {
        return crate::attention::decode_pages_of(q, &paged(cache), pages, options);
    }
    let (device, keys) = (q.device(), options.mask.keys());
    let [k, v] = cache.map(|x| {
        let run = x.gather(pages, keys, &device).cast(q.dtype());
        run.swap_dims(1, 2)
    });
    attention([q, k, v], options)
}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::{AttentionMask, attention_paged, write_cache};

    fn random(shape: [usize; 4]) -> Tensor<4> {
        Tensor::<4>::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
    }

    fn values(x: Tensor<4>) -> Vec<f32> {
        x.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn a_token_is_rounded_by_at_most_half_a_step() {
        let device = Device::flex();
        for scale in [1e-20_f32, 0.1, 1.0, 1e20] {
            let new = random([2, 3, 5, 8]) * scale;
            let mut pages = QuantizedPages::new([6, 3, 4, 8]);
            let lists: [&[usize]; 2] = [&[5, 0], &[2, 3]];
            pages.write(new.clone(), &lists, &[0, 0]);
            let (gathered, written) = (values(pages.gather(&lists, 5, &device)), values(new));
            let tokens = gathered.chunks(8).zip(written.chunks(8));
            for (rounded, exact) in tokens {
                let largest = exact.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                for (a, b) in rounded.iter().zip(exact) {
                    assert!((a - b).abs() <= largest / 254.0 * 1.0001, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_values_that_are_not_finite_stay_so() {
        let mut integers = [9; 3];
        assert_eq!(quantize(&[0.0, -0.0, 0.0], &mut integers).to_bits(), 0);
        assert_eq!(integers, [0; 3]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantize(&[1.0, bad], &mut integers[..2]).is_nan());
        }
    }

    /// Single queries read the integers in place, others a copy of floats.
    #[test]
    fn attention_is_that_over_the_rounded_floats() {
        let device = Device::flex();
        for seq in [1, 2, 20] {
            let (page_len, offset) = (8, 37);
            let lists: [&[usize]; 1] = [&[6, 2, 7, 0, 4, 1, 3, 5]];
            let mask = AttentionMask::causal(vec![offset], seq);
            let options = AttentionOptions {
                scale: 0.4,
                soft_cap: None,
                mask: &mask,
                window: Some(30),
                alibi: &[0.5, 0.25, 0.1, 0.0],
                dropout: None,
            };
            let rounded = [(), ()].map(|()| {
                let mut pages = QuantizedPages::new([8, 2, page_len, 16]);
                pages.write(random([1, 2, offset + seq, 16]), &lists, &[0]);
                pages
            });
            let floats = rounded.each_ref().map(|pages| {
                let run = pages.gather(&lists, offset + seq, &device);
                write_cache(random([8, 2, page_len, 16]), run, &lists, &[0])
            });
            let q = random([1, seq, 4, 16]);
            let actual = attention_paged_quantized(q.clone(), rounded.each_ref(), &lists, &options);
            let expected = attention_paged(q, floats.each_ref(), &lists, &options);
            assert_eq!(actual.into_data(), expected.into_data(), "{seq} queries");
        }
    }
}
