//! The backward pass: one kernel for the gradients of queries, by tiles of queries, and one for those of keys
//! and values, by tiles of keys. Each adds in one order, without atomics.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Attention;
use super::tile::{
    Rows, SHARED_LEN, Sizes, UNITS, Variant, add_weighted_strip, alibi, capped, clear, keep,
    multiply_strip, range_index, slope_of, weight_factor,
};
use crate::gpu::apply::BackwardContext;
use crate::gpu::dropout::Stream;
use crate::gpu::launch::{buffer, empty, empty_like, halves, len, per_element};

/// Log-sum-exp of each query, and the product of its output and the output's gradient,
/// `[batch, n_heads, queries, 2]`.
pub(super) fn stats(op: &Attention, ctx: &BackwardContext<CubeTensor, 3>) -> CubeTensor {
    let lse = &ctx.saved;
    let stats = empty(lse, [op.batch, op.heads, op.queries, 2]);
    if let Some((cubes, units)) = per_element(lse, len(lse)) {
        attention_stats::launch(
            &lse.client,
            cubes,
            units,
            buffer(ctx.output()),
            buffer(&ctx.grad),
            buffer(lse),
            buffer(&stats),
            op.queries,
            op.heads,
            op.head_dim,
        );
    }
    stats
}

/// The gradient of the queries.
pub(super) fn queries(
    op: &Attention,
    ctx: &BackwardContext<CubeTensor, 3>,
    stats: &CubeTensor,
) -> CubeTensor {
    let q = ctx.input(0);
    let dq = empty_like(q);
    if let Some(cubes) = op.cubes(q, op.heads, op.queries) {
        attention_query_gradient::launch(
            &q.client,
            cubes,
            CubeDim::new_1d(UNITS),
            buffer(q),
            buffer(ctx.input(1)),
            buffer(ctx.input(2)),
            buffer(&ctx.grad),
            buffer(stats),
            buffer(&op.ranges(q)),
            buffer(&dq),
            op.sizes(),
            op.stream(),
            op.variant(),
        );
    }
    dq
}

/// The gradients of keys and values.
pub(super) fn keys_values(
    op: &Attention,
    ctx: &BackwardContext<CubeTensor, 3>,
    stats: &CubeTensor,
) -> [CubeTensor; 2] {
    let k = ctx.input(1);
    // One buffer: adapters may not have more than seven.
    let (both, [dk, dv], second) = halves(k);
    if let Some(cubes) = op.cubes(k, op.kv_heads, op.keys) {
        attention_key_gradient::launch(
            &k.client,
            cubes,
            CubeDim::new_1d(UNITS),
            buffer(ctx.input(0)),
            buffer(k),
            buffer(ctx.input(2)),
            buffer(&ctx.grad),
            buffer(stats),
            buffer(&op.ranges(k)),
            buffer(&both),
            second,
            op.batch * op.kv_heads,
            op.sizes(),
            op.stream(),
            op.variant(),
        );
    }
    [dk, dv]
}

#[cube(launch)]
fn attention_stats(
    z: &[f32],
    dz: &[f32],
    lse: &[f32],
    stats: &mut [f32],
    queries: usize,
    heads: usize,
    head_dim: usize,
) {
    let i = ABSOLUTE_POS;
    if i < lse.len() {
        let (batch, head, query) = (i / (heads * queries), i / queries % heads, i % queries);
        let first = ((batch * queries + query) * heads + head) * head_dim;
        let mut product = 0.0f32;
        for element in first..first + head_dim {
            product += z[element] * dz[element];
        }
        stats[2 * i] = lse[i];
        stats[2 * i + 1] = product;
    }
}

/// The attention weight times its dropout factor, and the gradient of the product of query and key.
#[cube]
fn entry(
    product: f32,
    d_weight: f32,
    query: usize,
    key: usize,
    batch: usize,
    head: usize,
    slope: f32,
    ranges: &[u32],
    stats: &[f32],
    sizes: &Sizes,
    stream: &Stream,
    #[comptime] variant: Variant,
) -> (f32, f32) {
    let range = range_index(sizes, batch, query);
    let first = ranges[range] as usize;
    let end = ranges[range + 1] as usize;
    let is_visible = query < sizes.queries && key >= first && key < end;
    let head_row = batch * sizes.heads + head;
    let row = head_row * sizes.queries + min(query, sizes.queries - 1);
    let score = capped(product, sizes, comptime!(variant.has_cap));
    let mut biased = score;
    if comptime!(variant.has_alibi) {
        biased += alibi(slope, ranges[range + 2] as usize, key);
    }
    // Masked scores may exceed the log-sum-exp.
    let exponent = select(is_visible, biased - stats[2 * row], 0.0f32);
    let weight = select(is_visible, exponent.exp(), 0.0f32);
    let factor = weight_factor(stream, row, key, sizes.keys, comptime!(variant.has_dropout));
    let mut gradient = weight * (factor * d_weight - stats[2 * row + 1]) * sizes.scale;
    if comptime!(variant.has_cap) {
        let ratio = score / sizes.cap;
        gradient *= 1.0f32 - ratio * ratio;
    }
    (weight * factor, gradient)
}

#[cube(launch)]
#[allow(clippy::too_many_lines)] // One program, whose parts share registers.
fn attention_query_gradient(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dz: &[f32],
    stats: &[f32],
    ranges: &[u32],
    dq: &mut [f32],
    sizes: Sizes,
    stream: Stream,
    #[comptime] variant: Variant,
) {
    let tiles = sizes.queries.div_ceil(32);
    let head_row = CUBE_POS / tiles;
    if 2 * head_row * sizes.queries >= stats.len() {
        terminate!();
    }
    let first_query = CUBE_POS % tiles * 32;
    let (batch, head) = (head_row / sizes.heads, head_row % sizes.heads);
    let kv_head = head / (sizes.heads / sizes.kv_heads);
    let (y, x) = (UNIT_POS as usize / 8, UNIT_POS as usize % 8);
    let dim = sizes.head_dim;
    let (q_stride, kv_stride) = (sizes.heads * dim, sizes.kv_heads * dim);
    let q_base = batch * sizes.queries * q_stride + head * dim;
    let kv_base = batch * sizes.keys * kv_stride + kv_head * dim;
    let query_rows = Rows {
        base: q_base,
        stride: q_stride,
        first: first_query,
        end: sizes.queries,
        head_dim: dim,
    };
    let slope = slope_of(ranges, &sizes, head, comptime!(variant.has_alibi));

    let mut a = Shared::<[f32]>::new_slice(comptime!(SHARED_LEN));
    let mut b = Shared::<[f32]>::new_slice(comptime!(SHARED_LEN));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(SHARED_LEN));
    let mut products = Array::<f32>::new(16usize);
    let mut d_weights = Array::<f32>::new(16usize);
    let mut sums = Array::<f32>::new(comptime!(16 * variant.strips));
    clear(&mut sums, comptime!(16 * variant.strips));

    let first_key = ranges[range_index(&sizes, batch, first_query)] as usize;
    let end_key = ranges[range_index(&sizes, batch, first_query + 31) + 1] as usize;
    for tile in first_key / 32..end_key.div_ceil(32) {
        let tile_key = tile * 32;
        let key_rows = Rows {
            base: kv_base,
            stride: kv_stride,
            first: tile_key,
            end: sizes.keys,
            head_dim: dim,
        };
        clear(&mut products, 16usize);
        clear(&mut d_weights, 16usize);
        for strip in 0..comptime!(variant.strips) {
            multiply_strip(
                q,
                &query_rows,
                k,
                &key_rows,
                strip,
                &mut a,
                &mut b,
                &mut products,
            );
            multiply_strip(
                dz,
                &query_rows,
                v,
                &key_rows,
                strip,
                &mut a,
                &mut b,
                &mut d_weights,
            );
        }
        sync_cube();
        keep(&products, &mut weights);
        keep(&d_weights, &mut a);
        for element in 0..16usize {
            let (row, column) = (4 * y + element / 4, x + 8 * (element % 4));
            let (_, gradient) = entry(
                weights[row * 33 + column],
                a[row * 33 + column],
                first_query + row,
                tile_key + column,
                batch,
                head,
                slope,
                ranges,
                stats,
                &sizes,
                &stream,
                variant,
            );
            weights[row * 33 + column] = gradient;
        }
        #[unroll]
        for strip in 0..comptime!(variant.strips) {
            add_weighted_strip(&weights, k, &key_rows, comptime!(strip), &mut b, &mut sums);
        }
    }
    store(&sums, dq, 0, &query_rows, comptime!(variant.strips));
}

#[cube(launch)]
#[allow(clippy::too_many_lines)] // One program, whose parts share registers.
fn attention_key_gradient(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dz: &[f32],
    stats: &[f32],
    ranges: &[u32],
    gradients: &mut [f32],
    values_start: usize,
    kv_rows: usize,
    sizes: Sizes,
    stream: Stream,
    #[comptime] variant: Variant,
) {
    let tiles = sizes.keys.div_ceil(32);
    let kv_row = CUBE_POS / tiles;
    if kv_row >= kv_rows {
        terminate!();
    }
    let first_key = CUBE_POS % tiles * 32;
    let (batch, kv_head) = (kv_row / sizes.kv_heads, kv_row % sizes.kv_heads);
    let group = sizes.heads / sizes.kv_heads;
    let query_tiles = sizes.queries.div_ceil(32);
    let (y, x) = (UNIT_POS as usize / 8, UNIT_POS as usize % 8);
    let dim = sizes.head_dim;
    let (q_stride, kv_stride) = (sizes.heads * dim, sizes.kv_heads * dim);
    let kv_base = batch * sizes.keys * kv_stride + kv_head * dim;
    let key_rows = Rows {
        base: kv_base,
        stride: kv_stride,
        first: first_key,
        end: sizes.keys,
        head_dim: dim,
    };

    let mut a = Shared::<[f32]>::new_slice(comptime!(SHARED_LEN));
    let mut b = Shared::<[f32]>::new_slice(comptime!(SHARED_LEN));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(SHARED_LEN));
    let mut products = Array::<f32>::new(16usize);
    let mut d_weights = Array::<f32>::new(16usize);
    let mut dk = Array::<f32>::new(comptime!(16 * variant.strips));
    let mut dv = Array::<f32>::new(comptime!(16 * variant.strips));
    clear(&mut dk, comptime!(16 * variant.strips));
    clear(&mut dv, comptime!(16 * variant.strips));

    for member in 0..group {
        let head = kv_head * group + member;
        let q_base = batch * sizes.queries * q_stride + head * dim;
        let slope = slope_of(ranges, &sizes, head, comptime!(variant.has_alibi));
        for tile in 0..query_tiles {
            let first_query = tile * 32;
            let query_rows = Rows {
                base: q_base,
                stride: q_stride,
                first: first_query,
                end: sizes.queries,
                head_dim: dim,
            };
            let first_seen = ranges[range_index(&sizes, batch, first_query)] as usize;
            let end_seen = ranges[range_index(&sizes, batch, first_query + 31) + 1] as usize;
            if first_seen < first_key + 32 && end_seen > first_key {
                clear(&mut products, 16usize);
                clear(&mut d_weights, 16usize);
                for strip in 0..comptime!(variant.strips) {
                    multiply_strip(
                        k,
                        &key_rows,
                        q,
                        &query_rows,
                        strip,
                        &mut a,
                        &mut b,
                        &mut products,
                    );
                    multiply_strip(
                        v,
                        &key_rows,
                        dz,
                        &query_rows,
                        strip,
                        &mut a,
                        &mut b,
                        &mut d_weights,
                    );
                }
                sync_cube();
                keep(&products, &mut weights);
                keep(&d_weights, &mut a);
                for element in 0..16usize {
                    let (row, column) = (4 * y + element / 4, x + 8 * (element % 4));
                    let (weight, gradient) = entry(
                        weights[row * 33 + column],
                        a[row * 33 + column],
                        first_query + column,
                        first_key + row,
                        batch,
                        head,
                        slope,
                        ranges,
                        stats,
                        &sizes,
                        &stream,
                        variant,
                    );
                    weights[row * 33 + column] = weight;
                    a[row * 33 + column] = gradient;
                }
                #[unroll]
                for strip in 0..comptime!(variant.strips) {
                    add_weighted_strip(
                        &weights,
                        dz,
                        &query_rows,
                        comptime!(strip),
                        &mut b,
                        &mut dv,
                    );
                }
                #[unroll]
                for strip in 0..comptime!(variant.strips) {
                    add_weighted_strip(&a, q, &query_rows, comptime!(strip), &mut b, &mut dk);
                }
            }
        }
    }
    store(&dk, gradients, 0, &key_rows, comptime!(variant.strips));
    store(
        &dv,
        gradients,
        values_start,
        &key_rows,
        comptime!(variant.strips),
    );
}

/// Writes the unit's elements of `rows`, whose buffer begins at `start` of `out`.
#[cube]
#[allow(clippy::trivially_copy_pass_by_ref)] // An array in the program.
fn store(sums: &Array<f32>, out: &mut [f32], start: usize, rows: &Rows, #[comptime] strips: usize) {
    let (y, x) = (UNIT_POS as usize / 8, UNIT_POS as usize % 8);
    let base = start + rows.base;
    #[unroll]
    for i in 0..4usize {
        let row = rows.first + 4 * y + i;
        #[unroll]
        for column in 0..comptime!(4 * strips) {
            let element = column / 4 * 32 + x + 8 * (column % 4);
            if row < rows.end && element < rows.head_dim {
                out[base + row * rows.stride + element] =
                    sums[column / 4 * 16 + 4 * i + column % 4];
            }
        }
    }
}
