//! The keys and values of one layer.

use burn::tensor::{Device, Tensor};
use nextword_kernels::{
    AttentionOptions, QuantizedPages, attention_paged, attention_paged_quantized, gather_pages,
    write_cache, write_keys_values,
};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePrecision {
    /// In 32 bits, as they are computed.
    #[default]
    F32,
    /// As integers of 8 bits, with a scale for each head of each token: about a quarter of the memory. The
    /// computed logits differ slightly.
    Int8,
}

/// Keys and values, `[pages, n_kv_heads, page_len, head_dim]`.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // There is one per layer, and the large variant is the usual one.
pub(super) enum LayerStore {
    /// An `Option` so that a write can take sole ownership of the tensors and update them in place.
    F32(Option<(Tensor<4>, Tensor<4>)>),
    Int8(Box<[QuantizedPages; 2]>, Device),
}

impl LayerStore {
    pub(super) fn new(shape: [usize; 4], precision: CachePrecision, device: &Device) -> Self {
        match precision {
            CachePrecision::F32 => {
                let zeros = || Tensor::zeros(shape, device);
                Self::F32(Some((zeros(), zeros())))
            }
            CachePrecision::Int8 => {
                let zeros = || QuantizedPages::new(shape);
                Self::Int8(Box::new([zeros(), zeros()]), device.clone())
            }
        }
    }

    /// Writes `k` and `v`, `[rows, n_kv_heads, seq, head_dim]`, to the pages of the rows from the positions
    /// `starts` on.
    pub(super) fn write(
        &mut self,
        k: Tensor<4>,
        v: Tensor<4>,
        pages: &[&[usize]],
        starts: &[usize],
    ) {
        match self {
            Self::F32(tensors) => {
                let (keys, values) = take(tensors);
                let [keys, values] = write_keys_values([keys, values], [k, v], pages, starts);
                *tensors = Some((keys, values));
            }
            Self::Int8(stored, _) => {
                for (stored, x) in stored.iter_mut().zip([k, v]) {
                    stored.write(x, pages, starts);
                }
            }
        }
    }

    /// Adds pages of zeros of this shape.
    pub(super) fn grow(&mut self, added: [usize; 4]) {
        match self {
            Self::F32(tensors) => {
                let (keys, values) = take(tensors);
                let append = |x: Tensor<4>| {
                    let zeros = Tensor::zeros(added, &x.device());
                    Tensor::cat(vec![x, zeros], 0)
                };
                *tensors = Some((append(keys), append(values)));
            }
            Self::Int8(stored, _) => stored.iter_mut().for_each(|x| x.add_pages(added[0])),
        }
    }

    /// Copies page `from` to page `to`.
    pub(super) fn copy_page(&mut self, from: usize, to: usize) {
        match self {
            Self::F32(tensors) => {
                let (keys, values) = take(tensors);
                // The copy ends before the write starts, so that the write has sole ownership.
                let [k, v] = [&keys, &values].map(|x| x.clone().narrow(0, from, 1) * 1.0);
                let write = |into, x| write_cache(into, x, &[&[to]], &[0]);
                *tensors = Some((write(keys, k), write(values, v)));
            }
            Self::Int8(stored, _) => stored.iter_mut().for_each(|x| x.copy_page(from, to)),
        }
    }

    /// Attention of `q`, `[rows, seq, n_heads, head_dim]`, over the rows' pages.
    pub(super) fn attend(
        &self,
        q: Tensor<4>,
        pages: &[&[usize]],
        options: &AttentionOptions<'_>,
    ) -> Tensor<4> {
        match self {
            Self::F32(Some((keys, values))) => attention_paged(q, [keys, values], pages, options),
            Self::F32(None) => unreachable!("a write always puts the layer back"),
            Self::Int8(stored, _) => {
                attention_paged_quantized(q, stored.each_ref(), pages, options)
            }
        }
    }

    /// The first `len` keys and values of the rows, `[rows, n_kv_heads, len, head_dim]`.
    pub(super) fn gather(&self, pages: &[&[usize]], len: usize) -> [Tensor<4>; 2] {
        match self {
            Self::F32(Some((keys, values))) => [keys, values].map(|x| gather_pages(x, pages, len)),
            Self::F32(None) => unreachable!("a write always puts the layer back"),
            Self::Int8(stored, device) => stored.each_ref().map(|x| x.gather(pages, len, device)),
        }
    }
}

fn take(tensors: &mut Option<(Tensor<4>, Tensor<4>)>) -> (Tensor<4>, Tensor<4>) {
    match tensors.take() {
        Some(tensors) => tensors,
        None => unreachable!("a write always puts the layer back"),
    }
}
