//! Attention on the CPU.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use crate::cpu::attention as kernel;
use crate::cpu::view::{Strides, View, ViewMut};
use crate::fused::{self, BackwardContext, Buffer, Op, apply};
use crate::{AttentionMask, AttentionOptions};

pub(super) fn attention(qkv: [Tensor<4>; 3], options: &AttentionOptions<'_>) -> Tensor<4> {
    let (shape, [_, keys, n_kv_heads, _]) = (qkv[0].dims(), qkv[1].dims());
    let op = Attention::new(shape, keys, n_kv_heads, options);
    if qkv.iter().any(|x| x.device().is_autodiff()) {
        return apply(op, qkv.map(Into::into), shape);
    }
    op.inference(qkv)
}

/// Attention of one query per row over the pages of a cache, `[pages, n_kv_heads, page_len, head_dim]`.
pub(super) fn decode_pages(
    q: Tensor<4>,
    [keys, values]: [&Tensor<4>; 2],
    pages: &[&[usize]],
    options: &AttentionOptions<'_>,
) -> Tensor<4> {
    let (shape, [_, n_kv_heads, page_len, head_dim]) = (q.dims(), keys.dims());
    let op = Attention::new(shape, options.mask.keys(), n_kv_heads, options);
    let q = primitive(q).to_contiguous();
    let [keys, values] = [keys, values].map(|x| primitive(x.clone()).to_contiguous());
    let cache = kernel::PagedCache {
        keys: kernel::PageElements::F32(fused::values(&keys)),
        values: kernel::PageElements::F32(fused::values(&values)),
        n_kv_heads,
        page_len,
        head_dim,
    };
    decode_cache(&op, &q, &cache, pages)
}

/// The same over any cache, whose shape must fit the queries.
pub(crate) fn decode_pages_of(
    q: Tensor<4>,
    cache: &kernel::PagedCache<'_>,
    pages: &[&[usize]],
    options: &AttentionOptions<'_>,
) -> Tensor<4> {
    let op = Attention::new(q.dims(), options.mask.keys(), cache.n_kv_heads, options);
    decode_cache(&op, &primitive(q).to_contiguous(), cache, pages)
}

fn decode_cache(
    op: &Attention,
    q: &FlexTensor,
    cache: &kernel::PagedCache<'_>,
    pages: &[&[usize]],
) -> Tensor<4> {
    let kernel::Shape {
        batch,
        seq_q,
        n_heads,
        head_dim,
        ..
    } = op.shape;
    let mut z = Buffer::new(op.sizes().0);
    op.decode_rows(fused::values(q), cache, |row| pages[row], &mut z);
    let shape = [batch, seq_q, n_heads, head_dim];
    Tensor::from_primitive::<Flex>(fused::from_buffer(z, shape))
}

fn primitive(x: Tensor<4>) -> FlexTensor {
    let x = x.try_into_primitive::<Flex>();
    x.unwrap_or_else(|e| unreachable!("the caller checked `is_flex_f32`: {e:?}"))
}

#[derive(Clone, Debug)]
struct Attention {
    shape: kernel::Shape,
    scale: f32,
    soft_cap: Option<f32>,
    mask: AttentionMask,
    window: Option<usize>,
    alibi: Vec<f32>,
    dropout: Option<kernel::Dropout>,
}

impl Attention {
    /// For queries of this shape, and `seq_k` keys per row.
    fn new(
        [batch, seq_q, n_heads, head_dim]: [usize; 4],
        seq_k: usize,
        n_kv_heads: usize,
        options: &AttentionOptions<'_>,
    ) -> Self {
        Self {
            shape: kernel::Shape {
                batch,
                seq_q,
                seq_k,
                n_heads,
                n_kv_heads,
                head_dim,
            },
            scale: options.scale as f32,
            soft_cap: options.soft_cap.map(|cap| cap as f32),
            mask: options.mask.clone(),
            window: options.window,
            alibi: options.alibi.iter().map(|slope| *slope as f32).collect(),
            dropout: options.dropout.map(|dropout| kernel::Dropout {
                mask: crate::cpu::dropout::Mask {
                    key: dropout.rng.key(),
                    rate: dropout.rate,
                },
                first_sequence: dropout.first_sequence,
            }),
        }
    }

    fn options(&self) -> kernel::Options<'_> {
        kernel::Options {
            scale: self.scale,
            soft_cap: self.soft_cap,
            mask: &self.mask,
            window: self.window,
            alibi: &self.alibi,
            dropout: self.dropout,
        }
    }

    fn query_strides(&self) -> Strides {
        Strides::token_first(self.shape.seq_q, self.shape.n_heads, self.shape.head_dim)
    }

    fn key_strides(&self) -> Strides {
        Strides::token_first(self.shape.seq_k, self.shape.n_kv_heads, self.shape.head_dim)
    }

    fn sizes(&self) -> (usize, usize) {
        let kernel::Shape {
            batch,
            seq_q,
            n_heads,
            head_dim,
            ..
        } = self.shape;
        (batch * seq_q * n_heads * head_dim, batch * seq_q * n_heads)
    }

    /// Forward pass without autodiff. Reads keys and values in place, as in a KV cache.
    fn inference(&self, qkv: [Tensor<4>; 3]) -> Tensor<4> {
        let shape = qkv[0].dims();
        let [q, k, v] = qkv.map(primitive);
        let q = q.to_contiguous();
        let [k, v] = [k, v].map(|x| {
            if is_readable(&x) {
                x
            } else {
                x.to_contiguous()
            }
        });
        let (len, rows) = self.sizes();
        let mut z = Buffer::new(len);
        if !self.decode(fused::values(&q), [&k, &v], &mut z) {
            let query = View {
                data: fused::values(&q),
                strides: self.query_strides(),
            };
            let out = ViewMut {
                data: &mut z,
                strides: self.query_strides(),
            };
            let views = [query, view(&k), view(&v)];
            kernel::forward(
                &self.shape,
                &self.options(),
                views,
                out,
                &mut Buffer::new(rows),
            );
        }
        Tensor::from_primitive::<Flex>(fused::from_buffer(z, shape))
    }

    /// Runs the decode kernel if the input is one query per row over keys and values
    /// `[row, n_kv_heads, capacity, head_dim]`, each row of which is one page; returns false otherwise.
    fn decode(&self, q: &[f32], [k, v]: [&FlexTensor; 2], z: &mut [f32]) -> bool {
        let (strides, dim) = (view(k).strides, self.shape.head_dim);
        let base = k.layout().start_offset();
        let one_query = self.shape.seq_q == 1 && self.dropout.is_none();
        let same_layout =
            k.layout().strides() == v.layout().strides() && base == v.layout().start_offset();
        let row_len = self.shape.n_kv_heads * strides.head;
        let is_cache = strides.seq == dim
            && strides.head >= dim * self.shape.seq_k
            && (strides.batch == row_len || self.shape.batch == 1)
            && strides.head.is_multiple_of(dim)
            && row_len > 0
            && base.is_multiple_of(row_len);
        if !(one_query && same_layout && is_cache) {
            return false;
        }
        let cache = kernel::PagedCache {
            keys: kernel::PageElements::F32(k.storage()),
            values: kernel::PageElements::F32(v.storage()),
            n_kv_heads: self.shape.n_kv_heads,
            page_len: strides.head / dim,
            head_dim: dim,
        };
        let first = base / row_len;
        let pages: Vec<[usize; 1]> = (0..self.shape.batch).map(|row| [first + row]).collect();
        self.decode_rows(q, &cache, |row| &pages[row][..], z);
        true
    }

    /// Runs the decode kernel; `pages` returns the pages of a row.
    fn decode_rows<'a>(
        &self,
        q: &[f32],
        cache: &kernel::PagedCache<'_>,
        pages: impl Fn(usize) -> &'a [usize],
        z: &mut [f32],
    ) {
        let row = |row: usize| kernel::DecodeRow {
            pages: pages(row),
            keys: self.mask.visible_keys(row, 0, self.window),
            position: self.mask.position_offset(row),
        };
        let rows: Vec<_> = (0..self.shape.batch).map(row).collect();
        let options = kernel::DecodeOptions {
            scale: self.scale,
            soft_cap: self.soft_cap,
            alibi: &self.alibi,
        };
        kernel::decode(&options, q, cache, &rows, z);
    }
}

/// Returns whether the kernel can read `[batch, keys, heads, head_dim]` in place.
fn is_readable(x: &FlexTensor) -> bool {
    let strides = x.layout().strides();
    strides[3] == 1 && strides.iter().all(|stride| *stride >= 0)
}

fn view(x: &FlexTensor) -> View<'_> {
    let stride = |axis: usize| x.layout().strides()[axis].unsigned_abs();
    View {
        data: &x.storage()[x.layout().start_offset()..],
        strides: Strides {
            batch: stride(0),
            seq: stride(1),
            head: stride(2),
        },
    }
}

impl Op<3> for Attention {
    /// Log-sum-exp of the scores of each query, `[batch, n_heads, seq]`.
    type Saved = Buffer;
    const SAVES_INPUT: [bool; 3] = [true; 3];
    const SAVES_OUTPUT: bool = true;

    fn forward(&self, [q, k, v]: [&[f32]; 3], _needs_grad: [bool; 3]) -> (Buffer, Buffer) {
        let (len, rows) = self.sizes();
        let (mut z, mut lse) = (Buffer::new(len), Buffer::new(rows));
        let (queries, keys) = (self.query_strides(), self.key_strides());
        let views = [
            View {
                data: q,
                strides: queries,
            },
            View {
                data: k,
                strides: keys,
            },
            View {
                data: v,
                strides: keys,
            },
        ];
        let out = ViewMut {
            data: &mut z,
            strides: queries,
        };
        kernel::forward(&self.shape, &self.options(), views, out, &mut lse);
        (z, lse)
    }

    fn backward(&self, ctx: BackwardContext<'_, Buffer, 3>) -> [Option<Buffer>; 3] {
        let [q, k, v] = ctx.inputs;
        let (queries, keys) = (self.query_strides(), self.key_strides());
        let (mut dq, mut dk, mut dv) = (
            Buffer::new(q.len()),
            Buffer::new(k.len()),
            Buffer::new(v.len()),
        );
        let saved = kernel::Saved {
            q: View {
                data: q,
                strides: queries,
            },
            k: View {
                data: k,
                strides: keys,
            },
            v: View {
                data: v,
                strides: keys,
            },
            z: View {
                data: ctx.output,
                strides: queries,
            },
            lse: &ctx.saved,
        };
        let grads = kernel::Grads {
            q: ViewMut {
                data: &mut dq,
                strides: queries,
            },
            k: ViewMut {
                data: &mut dk,
                strides: keys,
            },
            v: ViewMut {
                data: &mut dv,
                strides: keys,
            },
        };
        let dz = View {
            data: ctx.grad,
            strides: queries,
        };
        kernel::backward(&self.shape, &self.options(), &saved, dz, grads);
        // The weight of a single key is 1 whatever its score: without this, the gradients are rounding errors.
        if self.window == Some(1) || self.shape.seq_k == 1 {
            dq.fill(0.0);
            dk.fill(0.0);
        }
        let [need_q, need_k, need_v] = ctx.needs_grad;
        [
            need_q.then_some(dq),
            need_k.then_some(dk),
            need_v.then_some(dv),
        ]
    }
}
