//! One query per row, as in decoding with a KV cache: one cube for each head of each row. Keys and values are
//! read where they lie.

use burn::tensor::Tensor;
use burn_cubecl::Cube;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Attention;
use super::forward::MASKED;
use super::tile::{Sizes, Variant, alibi, capped, slope_of};
use crate::gpu::apply::primitive;
use crate::gpu::kv_cache::page_table;
use crate::gpu::launch::{buffer, empty_like, per_cube};
use crate::gpu::reduce::{ROW_UNITS, max_over_cube, sum_over_cube};

/// Keys whose scores are in shared memory at a time.
const BLOCK: usize = 512;

/// Attention without autodiff.
pub(super) fn run(op: &Attention, [q, k, v]: [Tensor<4>; 3]) -> Tensor<4> {
    let q = primitive(q);
    let (mut k, mut v) = (strided(k), strided(v));
    if k.meta.strides() != v.meta.strides() || k.meta.strides()[3] != 1 {
        (k, v) = (into_contiguous(k), into_contiguous(v));
    }
    let stride = |axis: usize| k.meta.strides()[axis];
    let strides = StridesLaunch::new(stride(0), stride(1), stride(2), 0, 0);
    launch(op, &q, [&k, &v], &q, strides, None)
}

/// Attention over the pages of a cache, `[pages, n_kv_heads, page_len, head_dim]`.
pub(super) fn run_paged(
    op: &Attention,
    q: Tensor<4>,
    cache: [&Tensor<4>; 2],
    pages: &[&[usize]],
    page_len: usize,
) -> Tensor<4> {
    let (q, [keys, values]) = (primitive(q), cache.map(|x| primitive(x.clone())));
    let (table, per_row) = page_table(&q, pages);
    let head = page_len * op.head_dim;
    let strides = StridesLaunch::new(0, op.head_dim, head, op.kv_heads * head, per_row);
    launch(op, &q, [&keys, &values], &table, strides, Some(page_len))
}

fn launch(
    op: &Attention,
    q: &CubeTensor,
    [k, v]: [&CubeTensor; 2],
    pages: &CubeTensor,
    strides: StridesLaunch,
    page_len: Option<usize>,
) -> Tensor<4> {
    let z = empty_like(q);
    if let Some(cubes) = per_cube(q, op.batch * op.heads) {
        attention_decode::launch(
            &q.client,
            cubes,
            CubeDim::new_1d(ROW_UNITS),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(&op.ranges(q)),
            buffer(pages),
            buffer(&z),
            op.sizes(),
            strides,
            op.variant(),
            page_len,
        );
    }
    Tensor::from_primitive::<Cube>(z)
}

fn strided(x: Tensor<4>) -> CubeTensor {
    let x = x.try_into_primitive::<Cube>();
    x.unwrap_or_else(|e| unreachable!("keys and values lie where the queries do: {e:?}"))
}

/// Distances between rows, keys, heads and pages; and the pages of a row.
#[derive(CubeType, CubeLaunch)]
struct Strides {
    row: usize,
    key: usize,
    head: usize,
    page: usize,
    per_row: usize,
}

/// Index of the first element of a key or value; `base` is that of the head of the row, or of the head in a page.
#[cube]
fn start_of(
    pages: &[u32],
    strides: &Strides,
    row: usize,
    base: usize,
    key: usize,
    #[comptime] page_len: Option<usize>,
) -> usize {
    if comptime!(page_len.is_some()) {
        let page_len = comptime!(page_len.unwrap_or(1));
        let page = pages[row * strides.per_row + key / page_len] as usize;
        base + page * strides.page + key % page_len * strides.key
    } else {
        base + key * strides.key
    }
}

#[cube(launch)]
fn attention_decode(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    ranges: &[u32],
    pages: &[u32],
    z: &mut [f32],
    sizes: Sizes,
    strides: Strides,
    #[comptime] variant: Variant,
    #[comptime] page_len: Option<usize>,
) {
    let dim = sizes.head_dim;
    let head_row = CUBE_POS;
    if head_row * dim >= z.len() {
        terminate!();
    }
    let (row, head) = (head_row / sizes.heads, head_row % sizes.heads);
    let kv_head = head / (sizes.heads / sizes.kv_heads);
    let base = row * strides.row + kv_head * strides.head;
    let slope = slope_of(ranges, &sizes, head, comptime!(variant.has_alibi));
    let range = 3 * select(sizes.mask_rows == 1, 0, row);
    let (first, end) = (ranges[range] as usize, ranges[range + 1] as usize);
    let unit = UNIT_POS as usize;
    let (left, right) = (unit, unit + 64);

    let mut query = Shared::<[f32]>::new_slice(128usize);
    let mut weights = Shared::<[f32]>::new_slice(comptime!(BLOCK));
    for element in range_stepped(unit, dim, 64) {
        query[element] = q[head_row * dim + element];
    }
    sync_cube();
    let mut maximum = comptime!(MASKED).runtime();
    let mut total = 0.0f32;
    let mut left_sum = 0.0f32;
    let mut right_sum = 0.0f32;
    for start in range_stepped(first, end, comptime!(BLOCK)) {
        let count = min(end - start, comptime!(BLOCK).runtime());
        let mut block_maximum = maximum;
        for j in range_stepped(unit, count, 64) {
            let at = start_of(pages, &strides, row, base, start + j, page_len);
            let mut product = 0.0f32;
            for element in 0..dim {
                product += query[element] * k[at + element];
            }
            let mut score = capped(product, &sizes, comptime!(variant.has_cap));
            if comptime!(variant.has_alibi) {
                score += alibi(slope, ranges[range + 2] as usize, start + j);
            }
            weights[j] = score;
            block_maximum = max(block_maximum, score);
        }
        let block_maximum = max_over_cube(block_maximum);
        let correction = (maximum - block_maximum).exp();
        maximum = block_maximum;
        let mut sum = 0.0f32;
        for j in range_stepped(unit, count, 64) {
            let weight = (weights[j] - maximum).exp();
            weights[j] = weight;
            sum += weight;
        }
        // Its barriers also make the weights visible.
        total = total * correction + sum_over_cube(sum);
        left_sum *= correction;
        right_sum *= correction;
        for j in 0..count {
            let at = start_of(pages, &strides, row, base, start + j, page_len);
            if left < dim {
                left_sum += weights[j] * v[at + left];
            }
            if right < dim {
                right_sum += weights[j] * v[at + right];
            }
        }
        sync_cube();
    }
    let inverse = select(total > 0.0f32, 1.0f32 / max(total, 1e-30f32), 0.0f32);
    if left < dim {
        z[head_row * dim + left] = left_sum * inverse;
    }
    if right < dim {
        z[head_row * dim + right] = right_sum * inverse;
    }
}
