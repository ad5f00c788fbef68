//! Attention that never stores the scores (Dao et al. 2022, arXiv 2205.14135): tiles of queries and keys in
//! shared memory, and an online softmax. The backward pass computes the scores again.

mod backward;
mod decode;
mod forward;
mod tile;

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::CubeCount;

use super::apply::{BackwardContext, Op, apply, is_gpu_f32};
use super::dropout::{Draws, StreamLaunch};
use super::launch::{empty, empty_like, per_cube, upload};
use crate::{AttentionMask, AttentionOptions, CounterRng};
use tile::{SizesLaunch, TILE, Variant};

/// The largest number of elements per head: they are accumulated in registers.
const MAX_HEAD_DIM: usize = 128;

/// Whether the kernels support these shapes: keys that exist, and heads that are not too large.
pub(crate) fn supports(q: &Tensor<4>, k: &Tensor<4>) -> bool {
    let has_elements = q.dims().iter().chain(&k.dims()).all(|size| *size > 0);
    has_elements && q.dims()[3] <= MAX_HEAD_DIM
}

pub(crate) fn attention(qkv: [Tensor<4>; 3], options: &AttentionOptions<'_>) -> Tensor<4> {
    let op = Attention::new(qkv[0].dims(), qkv[1].dims(), options);
    let is_plain = qkv.iter().all(|x| !x.device().is_autodiff());
    if is_plain && op.queries == 1 && op.dropout.is_none() {
        return decode::run(&op, qkv);
    }
    apply(op, qkv.map(Into::into))
}

/// Whether a single query of each row can read the pages of a cache in place.
pub(crate) fn supports_pages(
    q: &Tensor<4>,
    keys: &Tensor<4>,
    options: &AttentionOptions<'_>,
) -> bool {
    let is_plain = [q, keys]
        .iter()
        .all(|x| is_gpu_f32(*x) && !x.device().is_autodiff());
    is_plain && q.dims()[1] == 1 && options.dropout.is_none() && supports(q, keys)
}

/// Attention of single queries over the pages of a cache.
pub(crate) fn attention_paged(
    q: Tensor<4>,
    cache: [&Tensor<4>; 2],
    pages: &[&[usize]],
    options: &AttentionOptions<'_>,
) -> Tensor<4> {
    let [_, kv_heads, page_len, head_dim] = cache[0].dims();
    let keys = [q.dims()[0], options.mask.keys(), kv_heads, head_dim];
    let op = Attention::new(q.dims(), keys, options);
    decode::run_paged(&op, q, cache, pages, page_len)
}

#[derive(Clone, Debug)]
struct Attention {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    soft_cap: Option<f32>,
    mask: AttentionMask,
    window: Option<usize>,
    alibi: Vec<f32>,
    dropout: Option<Draws>,
}

impl Attention {
    fn new(
        [batch, queries, heads, head_dim]: [usize; 4],
        [_, keys, kv_heads, _]: [usize; 4],
        options: &AttentionOptions<'_>,
    ) -> Self {
        let dropout = options.dropout.map(|dropout| {
            let per_row = (heads * queries * keys) as u64;
            let offset = dropout.first_sequence.wrapping_mul(per_row);
            Draws::new(dropout.rng, dropout.rate, offset)
        });
        Self {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            head_dim,
            scale: options.scale as f32,
            soft_cap: options.soft_cap.map(|cap| cap as f32),
            mask: options.mask.clone(),
            window: options.window,
            alibi: options.alibi.iter().map(|slope| *slope as f32).collect(),
            dropout,
        }
    }

    fn variant(&self) -> Variant {
        Variant {
            strips: self.head_dim.div_ceil(TILE),
            has_cap: self.soft_cap.is_some(),
            has_alibi: !self.alibi.is_empty(),
            has_dropout: self.dropout.is_some(),
        }
    }

    fn sizes(&self) -> SizesLaunch {
        SizesLaunch::new(
            self.queries,
            self.keys,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.mask.rows(),
            self.scale,
            self.soft_cap.unwrap_or(1.0),
        )
    }

    fn stream(&self) -> StreamLaunch {
        let unused = || Draws::new(CounterRng::new(0), 0.0, 0);
        self.dropout.unwrap_or_else(unused).launch_arg()
    }

    /// One cube for each tile of `len` queries or keys of each head.
    fn cubes(&self, like: &CubeTensor, heads: usize, len: usize) -> Option<CubeCount> {
        per_cube(like, self.batch * heads * len.div_ceil(TILE))
    }

    /// First visible key, one past the last, and position of each query, `[rows, queries, 3]`, followed by
    /// the bits of the `ALiBi` slope of each head. Built once per mask: all layers share them.
    fn ranges(&self, like: &CubeTensor) -> CubeTensor {
        let slopes: Vec<u32> = self.alibi.iter().map(|slope| slope.to_bits()).collect();
        self.mask.on_gpu(self.window, &slopes, &like.device, || {
            let mut words = Vec::with_capacity(3 * self.mask.rows() * self.queries + slopes.len());
            for row in 0..self.mask.rows() {
                for query in 0..self.queries {
                    let visible = self.mask.visible_keys(row, query, self.window);
                    let position = self.mask.position_offset(row) + query;
                    words.extend([visible.start, visible.end, position].map(|x| x as u32));
                }
            }
            words.extend(&slopes);
            upload(like, &words)
        })
    }
}

impl Op<3> for Attention {
    /// Log-sum-exp of the scores of each query, `[batch, n_heads, queries]`.
    type Saved = CubeTensor;
    const SAVES_INPUT: [bool; 3] = [true; 3];
    const SAVES_OUTPUT: bool = true;

    fn forward(&self, [q, k, v]: [&CubeTensor; 3], _: [bool; 3]) -> (CubeTensor, CubeTensor) {
        let z = empty_like(q);
        let lse = empty(q, [self.batch, self.heads, self.queries]);
        forward::run(self, [q, k, v], &z, &lse);
        (z, lse)
    }

    fn backward(&self, ctx: BackwardContext<CubeTensor, 3>) -> [Option<CubeTensor>; 3] {
        let [need_q, need_k, need_v] = ctx.needs_grad;
        let stats = backward::stats(self, &ctx);
        let dq = need_q.then(|| backward::queries(self, &ctx, &stats));
        let keys_values = (need_k || need_v).then(|| backward::keys_values(self, &ctx, &stats));
        let [dk, dv] = keys_values.map_or([None, None], |gradients| gradients.map(Some));
        // The weight of a single key is 1 whatever its score: without this, the gradients are rounding errors.
        if self.window == Some(1) || self.keys == 1 {
            return [dq.map(zeros_like), dk.map(zeros_like), dv];
        }
        [dq, dk, dv]
    }
}

fn zeros_like(tensor: CubeTensor) -> CubeTensor {
    let shape = tensor.meta.shape().clone();
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    burn_cubecl::ops::numeric::zeros_client(client, device, shape, tensor.dtype)
}
