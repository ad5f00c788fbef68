//! Tiles of 32 x 32 elements in shared memory. A cube has 64 units: unit `(y, x)` of an 8 x 8 grid computes
//! rows `4 y..4 y + 4` of a product and its columns `x`, `x + 8`, `x + 16` and `x + 24`.

use cubecl::prelude::*;

use crate::gpu::dropout::{Stream, dropout_factor};

/// Rows and columns of a tile.
pub(super) const TILE: usize = 32;
/// Units per cube.
pub(super) const UNITS: u32 = 64;
/// Elements of a tile whose rows are padded by one: then the units of a column use different banks.
pub(super) const SHARED_LEN: usize = 32 * 33;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    /// Tiles that cover the elements of a head.
    pub(super) strips: usize,
    pub(super) has_cap: bool,
    pub(super) has_alibi: bool,
    pub(super) has_dropout: bool,
}

/// Shapes and constants.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Rows of the mask: 1 if all rows of the batch agree.
    pub(super) mask_rows: usize,
    pub(super) scale: f32,
    pub(super) cap: f32,
}

/// The 32 rows of a head that begin at row `first`. Rows are `stride` elements apart, and there are none from `end` on.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    pub(super) base: usize,
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) head_dim: usize,
}

/// Copies elements `32 strip..32 strip + 32` of `rows`; 0 beyond the last row and the head.
#[cube]
fn load_tile(source: &[f32], tile: &mut Shared<[f32]>, rows: &Rows, strip: usize) {
    for i in 0..16 {
        let element = i * 64 + UNIT_POS as usize;
        let (row, inner) = (element / 32, element % 32);
        let column = strip * 32 + inner;
        let mut value = 0.0f32;
        if rows.first + row < rows.end && column < rows.head_dim {
            value = source[rows.base + (rows.first + row) * rows.stride + column];
        }
        tile[row * 33 + inner] = value;
    }
}

/// Adds the products of the rows of two heads over the elements of a strip, `sums[4 i + j]`. Leaves the strip in the
/// tiles `a` and `b`.
#[cube]
pub(super) fn multiply_strip(
    left: &[f32],
    left_rows: &Rows,
    right: &[f32],
    right_rows: &Rows,
    strip: usize,
    a: &mut Shared<[f32]>,
    b: &mut Shared<[f32]>,
    sums: &mut Array<f32>,
) {
    sync_cube();
    load_tile(left, a, left_rows, strip);
    load_tile(right, b, right_rows, strip);
    sync_cube();
    add_products(&*a, &*b, sums);
}

/// Adds the rows of a head, each times its weights, over the elements of a strip. Leaves the strip in the tile `b`.
#[cube]
pub(super) fn add_weighted_strip(
    weights: &Shared<[f32]>,
    values: &[f32],
    rows: &Rows,
    #[comptime] strip: usize,
    b: &mut Shared<[f32]>,
    sums: &mut Array<f32>,
) {
    sync_cube();
    load_tile(values, b, rows, strip.runtime());
    sync_cube();
    add_weighted(weights, &*b, sums, comptime!(strip * 16));
}

/// Adds the products of the unit's rows of `a` and rows of `b`, `sums[4 i + j]`.
#[cube]
fn add_products(a: &Shared<[f32]>, b: &Shared<[f32]>, sums: &mut Array<f32>) {
    let (y, x) = (UNIT_POS as usize / 8, UNIT_POS as usize % 8);
    for inner in 0..32 {
        #[unroll]
        for i in 0..4 {
            let left = a[(4 * y + i) * 33 + inner];
            #[unroll]
            for j in 0..4 {
                sums[4 * i + j] += left * b[(x + 8 * j) * 33 + inner];
            }
        }
    }
}

/// Adds the product of the unit's rows of `weights` and columns of `values`, `sums[first + 4 i + j]`.
#[cube]
fn add_weighted(
    weights: &Shared<[f32]>,
    values: &Shared<[f32]>,
    sums: &mut Array<f32>,
    #[comptime] first: usize,
) {
    let (y, x) = (UNIT_POS as usize / 8, UNIT_POS as usize % 8);
    for inner in 0..32 {
        #[unroll]
        for i in 0..4 {
            let weight = weights[(4 * y + i) * 33 + inner];
            #[unroll]
            for j in 0..4 {
                sums[first + 4 * i + j] += weight * values[inner * 33 + x + 8 * j];
            }
        }
    }
}

/// Writes the unit's elements of a product to their places in a tile.
#[cube]
#[allow(clippy::trivially_copy_pass_by_ref)] // An array in the program.
pub(super) fn keep(sums: &Array<f32>, tile: &mut Shared<[f32]>) {
    let (y, x) = (UNIT_POS as usize / 8, UNIT_POS as usize % 8);
    #[unroll]
    for i in 0..4 {
        #[unroll]
        for j in 0..4 {
            tile[(4 * y + i) * 33 + x + 8 * j] = sums[4 * i + j];
        }
    }
}

/// Sets the first `len` elements to 0.
#[cube]
pub(super) fn clear(sums: &mut Array<f32>, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        sums[i] = 0.0f32;
    }
}

/// The scaled and capped score, before the bias of `ALiBi`.
#[cube]
pub(super) fn capped(product: f32, sizes: &Sizes, #[comptime] has_cap: bool) -> f32 {
    let score = product * sizes.scale;
    if comptime!(has_cap) {
        // tanh, from an exponential that stays finite.
        let twice = clamp(2.0f32 * score / sizes.cap, -30.0f32, 30.0f32);
        sizes.cap * (1.0f32 - 2.0f32 / (twice.exp() + 1.0f32))
    } else {
        score
    }
}

/// The bias of `ALiBi`.
#[cube]
pub(super) fn alibi(slope: f32, position: usize, key: usize) -> f32 {
    let distance = select(position > key, position - key, key - position);
    -slope * (distance as f32)
}

/// The slope of a head, which follows the ranges.
#[cube]
pub(super) fn slope_of(
    ranges: &[u32],
    sizes: &Sizes,
    head: usize,
    #[comptime] has_alibi: bool,
) -> f32 {
    if comptime!(has_alibi) {
        f32::reinterpret(ranges[3 * sizes.mask_rows * sizes.queries + head])
    } else {
        0.0f32.runtime()
    }
}

/// Index of a query's range in the ranges; for a query beyond the last one, of the last one.
#[cube]
pub(super) fn range_index(sizes: &Sizes, batch: usize, query: usize) -> usize {
    let row = select(sizes.mask_rows == 1, 0, batch);
    3 * (row * sizes.queries + min(query, sizes.queries - 1))
}

/// The dropout factor of an attention weight; `row` counts the queries of all heads.
#[cube]
pub(super) fn weight_factor(
    stream: &Stream,
    row: usize,
    key: usize,
    keys: usize,
    #[comptime] has_dropout: bool,
) -> f32 {
    if comptime!(has_dropout) {
        let (row, key, keys) = (row as u32, key as u32, keys as u32);
        let start = row * keys;
        let low = start + key;
        let high = row.mul_hi(keys) + select(low < key, 1u32, 0u32);
        dropout_factor(stream, low, high)
    } else {
        1.0f32.runtime()
    }
}
