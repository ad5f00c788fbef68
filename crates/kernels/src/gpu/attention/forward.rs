//! The forward pass: one cube for each tile of 32 queries of a head.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Attention;
use super::tile::{
    Rows, SHARED_LEN, Sizes, UNITS, Variant, add_weighted_strip, alibi, capped, clear, keep,
    multiply_strip, range_index, slope_of, weight_factor,
};
use crate::gpu::dropout::Stream;
use crate::gpu::launch::buffer;

/// A score that no softmax notices; finite, since shader languages assume that there is no infinity.
pub(super) const MASKED: f32 = -1e30;

/// Writes the output and the log-sum-exp of the scores of each query.
pub(super) fn run(op: &Attention, [q, k, v]: [&CubeTensor; 3], z: &CubeTensor, lse: &CubeTensor) {
    let Some(cubes) = op.cubes(q, op.heads, op.queries) else {
        return;
    };
    attention_forward::launch(
        &q.client,
        cubes,
        CubeDim::new_1d(UNITS),
        buffer(q),
        buffer(k),
        buffer(v),
        buffer(&op.ranges(q)),
        buffer(z),
        buffer(lse),
        op.sizes(),
        op.stream(),
        op.variant(),
    );
}

#[cube(launch)]
#[allow(clippy::too_many_lines)] // One program, whose parts share registers.
fn attention_forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    ranges: &[u32],
    z: &mut [f32],
    lse: &mut [f32],
    sizes: Sizes,
    stream: Stream,
    #[comptime] variant: Variant,
) {
    let tiles = sizes.queries.div_ceil(32);
    let head_row = CUBE_POS / tiles;
    if head_row * sizes.queries >= lse.len() {
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
    let mut partial = Shared::<[f32]>::new_slice(256usize);
    let mut scores = Array::<f32>::new(16usize);
    let mut sums = Array::<f32>::new(comptime!(16 * variant.strips));
    let mut maxima = Array::<f32>::new(4usize);
    let mut totals = Array::<f32>::new(4usize);
    clear(&mut sums, comptime!(16 * variant.strips));
    #[unroll]
    for i in 0..4 {
        maxima[i] = comptime!(MASKED).runtime();
        totals[i] = 0.0f32;
    }

    // Both ends of the ranges never decrease from one query to the next.
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
        clear(&mut scores, 16usize);
        for strip in 0..comptime!(variant.strips) {
            multiply_strip(
                q,
                &query_rows,
                k,
                &key_rows,
                strip,
                &mut a,
                &mut b,
                &mut scores,
            );
        }
        keep(&scores, &mut weights);
        for i in 0..4usize {
            let row = 4 * y + i;
            let range = range_index(&sizes, batch, first_query + row);
            let (first, end) = (ranges[range] as usize, ranges[range + 1] as usize);
            let mut maximum = comptime!(MASKED).runtime();
            for j in 0..4usize {
                let (at, key) = (row * 33 + x + 8 * j, tile_key + x + 8 * j);
                let mut score = capped(weights[at], &sizes, comptime!(variant.has_cap));
                if comptime!(variant.has_alibi) {
                    score += alibi(slope, ranges[range + 2] as usize, key);
                }
                let is_visible = key >= first && key < end;
                let masked = select(is_visible, score, comptime!(MASKED).runtime());
                weights[at] = masked;
                maximum = max(maximum, masked);
            }
            partial[row * 8 + x] = maximum;
        }
        sync_cube();
        #[unroll]
        for i in 0..4 {
            let row = 4 * y + i;
            let mut maximum = maxima[i];
            for part in 0..8usize {
                maximum = max(maximum, partial[row * 8 + part]);
            }
            let correction = (maxima[i] - maximum).exp();
            maxima[i] = maximum;
            #[unroll]
            for column in 0..comptime!(4 * variant.strips) {
                sums[column / 4 * 16 + 4 * i + column % 4] *= correction;
            }
            let query = head_row * sizes.queries + first_query + row;
            let mut total = totals[i] * correction;
            for j in 0..4usize {
                let (at, key) = (row * 33 + x + 8 * j, tile_key + x + 8 * j);
                let score = weights[at];
                let is_visible = score > comptime!(MASKED * 0.5).runtime();
                let weight = select(is_visible, (score - maximum).exp(), 0.0f32);
                total += weight;
                let has_dropout = comptime!(variant.has_dropout);
                weights[at] = weight * weight_factor(&stream, query, key, sizes.keys, has_dropout);
            }
            totals[i] = total;
        }
        #[unroll]
        for strip in 0..comptime!(variant.strips) {
            add_weighted_strip(&weights, v, &key_rows, comptime!(strip), &mut b, &mut sums);
        }
    }

    sync_cube();
    #[unroll]
    for i in 0..4 {
        partial[(4 * y + i) * 8 + x] = totals[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..4 {
        let row = 4 * y + i;
        let query = first_query + row;
        let mut total = 0.0f32;
        for part in 0..8 {
            total += partial[row * 8 + part];
        }
        if query < sizes.queries {
            let inverse = select(total > 0.0f32, 1.0f32 / max(total, 1e-30f32), 0.0f32);
            #[unroll]
            for column in 0..comptime!(4 * variant.strips) {
                let element = column / 4 * 32 + x + 8 * (column % 4);
                if element < dim {
                    z[q_base + query * q_stride + element] =
                        sums[column / 4 * 16 + 4 * i + column % 4] * inverse;
                }
            }
            if x == 0 {
                lse[head_row * sizes.queries + query] = maxima[i] + max(total, 1e-30f32).ln();
            }
        }
    }
}
