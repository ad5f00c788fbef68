//! Products of few rows with a matrix, as in decoding: the time is that of reading the matrix. A cube multiplies
//! four rows, and the cubes that read the same columns follow each other, so that they find them in a cache.
//!
//! The inner dimension is divided between the units of a cube, whose sums are added in order. The bits of a
//! row do not depend on the others.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::epilogue::{Addends, Epilogue, activated, added};
use crate::gpu::launch::{buffer, empty, per_cube};

/// Units per cube.
pub(in crate::gpu) const UNITS: u32 = 256;
/// Rows of the input that a cube multiplies.
pub(in crate::gpu) const ROWS: usize = 4;

/// Shape of a product `x w`, `[rows, d_out]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatrixProduct {
    pub(super) rows: usize,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    /// Whether the matrix is stored as `[d_out, d_in]`.
    pub(super) is_transposed: bool,
}

impl MatrixProduct {
    /// `activation(x w + bias + addend)` in `shape`.
    pub(super) fn run(
        &self,
        [x, w]: [&CubeTensor; 2],
        [bias, addend]: Addends<'_>,
        epilogue: Epilogue,
        shape: &[usize],
    ) -> CubeTensor {
        let y = empty(x, shape.to_vec());
        let (bias, addend) = (bias.unwrap_or(x), addend.unwrap_or(x));
        let [x_arg, w_arg, bias, addend, y_arg] = [x, w, bias, addend, &y].map(buffer);
        let groups = self.rows.div_ceil(ROWS);
        let is_single = self.rows == 1;
        let (client, units) = (&x.client, CubeDim::new_1d(UNITS));
        let (rows, d_in) = (self.rows, self.d_in);
        if self.is_transposed {
            if let Some(cubes) = per_cube(x, groups * self.d_out.div_ceil(8)) {
                multiply_table::launch(
                    client, cubes, units, x_arg, w_arg, bias, addend, y_arg, rows, d_in,
                    self.d_out, is_single, epilogue,
                );
            }
        } else if let Some(cubes) = per_cube(x, groups * self.d_out.div_ceil(16)) {
            multiply_matrix::launch(
                client, cubes, units, x_arg, w_arg, bias, addend, y_arg, rows, d_in, self.d_out,
                is_single, epilogue,
            );
        }
        y
    }
}

/// Rows that a cube multiplies at a time.
pub(in crate::gpu) fn rows_of(is_single: bool) -> usize {
    if is_single { 1 } else { ROWS }
}

/// A cube multiplies with 16 columns; its units are 16 parts of the inner dimension, each with a unit per column.
#[cube(launch)]
fn multiply_matrix(
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    addend: &[f32],
    y: &mut [f32],
    rows: usize,
    d_in: usize,
    d_out: usize,
    #[comptime] is_single: bool,
    #[comptime] epilogue: Epilogue,
) {
    let count = comptime!(rows_of(is_single));
    let groups = rows.div_ceil(count);
    let (first_row, first_column) = (CUBE_POS % groups * count, CUBE_POS / groups * 16);
    if first_column >= d_out {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (part, column) = (unit / 16, first_column + unit % 16);
    let mut sums = Array::<f32>::new(comptime!(count));
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
    // Units without a column read the last one.
    let read = min(column, d_out - 1);
    for inner in range_stepped(part, d_in, 16) {
        let weight = w[inner * d_out + read];
        #[unroll]
        for i in 0..count {
            sums[i] += x[min(first_row + i, rows - 1) * d_in + inner] * weight;
        }
    }
    finish(
        sums,
        bias,
        addend,
        y,
        first_row,
        first_column,
        rows,
        d_out,
        16usize,
        is_single,
        epilogue,
    );
}

/// A cube multiplies with 8 rows of the table; its units are 32 for each.
#[cube(launch)]
fn multiply_table(
    x: &[f32],
    table: &[f32],
    bias: &[f32],
    addend: &[f32],
    y: &mut [f32],
    rows: usize,
    d_in: usize,
    d_out: usize,
    #[comptime] is_single: bool,
    #[comptime] epilogue: Epilogue,
) {
    let count = comptime!(rows_of(is_single));
    let groups = rows.div_ceil(count);
    let (first_row, first_column) = (CUBE_POS % groups * count, CUBE_POS / groups * 8);
    if first_column >= d_out {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (part, column) = (unit % 32, first_column + unit / 32);
    let mut sums = Array::<f32>::new(comptime!(count));
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
    let base = min(column, d_out - 1) * d_in;
    for inner in range_stepped(part, d_in, 32) {
        let weight = table[base + inner];
        #[unroll]
        for i in 0..count {
            sums[i] += x[min(first_row + i, rows - 1) * d_in + inner] * weight;
        }
    }
    finish(
        sums,
        bias,
        addend,
        y,
        first_row,
        first_column,
        rows,
        d_out,
        8usize,
        is_single,
        epilogue,
    );
}

/// Adds the sums that the units of a cube have for parts of the inner dimension and writes the elements of the output. With
/// 16 columns, consecutive units have consecutive columns; with 8, consecutive parts of a column.
#[cube]
pub(in crate::gpu) fn finish(
    sums: Array<f32>,
    bias: &[f32],
    addend: &[f32],
    y: &mut [f32],
    first_row: usize,
    first_column: usize,
    rows: usize,
    d_out: usize,
    #[comptime] columns: usize,
    #[comptime] is_single: bool,
    #[comptime] epilogue: Epilogue,
) {
    let count = comptime!(rows_of(is_single));
    let part_count = comptime!(256 / columns);
    let (part_stride, column_stride) = comptime!(if columns == 16 { (16, 1) } else { (1, 32) });
    let unit = UNIT_POS as usize;
    let mut parts = Shared::<[f32]>::new_slice(comptime!(256 * count));
    #[unroll]
    for i in 0..count {
        parts[i * 256 + unit] = sums[i];
    }
    sync_cube();
    let (i, own) = (unit / columns, unit % columns);
    let column = first_column + own;
    if i < count && first_row + i < rows && column < d_out {
        let mut sum = 0.0f32;
        for part in 0..part_count {
            sum += parts[i * 256 + part * part_stride + own * column_stride];
        }
        let at = (first_row + i) * d_out + column;
        y[at] = activated(added(sum, bias, addend, at, column, epilogue), epilogue);
    }
}
