//! Kernels that read integers in blocks of 32.

use cubecl::prelude::*;

use super::packed::Layout;
use crate::gpu::linear::epilogue::Epilogue;
use crate::gpu::linear::rows::{finish, rows_of};

/// `activation(x W + bias + addend)` for few rows. A cube multiplies with 8 columns; its units are 32 for
/// each, which read consecutive words.
#[cube(launch)]
pub(super) fn multiply_blocks(
    x: &[f32],
    words: &[u32],
    factors: &[u32],
    bias: &[f32],
    addend: &[f32],
    y: &mut [f32],
    rows: usize,
    d_in: usize,
    d_out: usize,
    #[comptime] is_single: bool,
    #[comptime] layout: Layout,
    #[comptime] epilogue: Epilogue,
) {
    let count = comptime!(rows_of(is_single));
    let bits = comptime!(layout.bits);
    let per_word = comptime!(32 / layout.bits);
    let groups = rows.div_ceil(count);
    let (first_row, first_column) = (CUBE_POS % groups * count, CUBE_POS / groups * 8);
    if first_column >= d_out {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (part, column) = (unit % 32, first_column + unit / 32);
    let blocks = d_in.div_ceil(32);
    let column_words = blocks * bits;
    let read = min(column, d_out - 1);
    let mut sums = Array::<f32>::new(comptime!(count));
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
    for at in range_stepped(part, column_words, 32) {
        let word = words[read * column_words + at];
        let factor = factors[read * blocks + at / bits];
        let scale = scale_of(factor, layout);
        let minimum = minimum_of(factor, layout);
        for i in 0..per_word {
            let inner = at * per_word + i;
            let value = value_of(word >> ((i * bits) as u32), scale, minimum, layout);
            let weight = select(inner < d_in, value, 0.0f32);
            #[unroll]
            for row in 0..count {
                let element = min(first_row + row, rows - 1) * d_in + min(inner, d_in - 1);
                sums[row] += x[element] * weight;
            }
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

/// All values, `[d_out, d_in]`.
#[cube(launch)]
pub(super) fn dequantize(
    words: &[u32],
    factors: &[u32],
    table: &mut [f32],
    d_in: usize,
    #[comptime] layout: Layout,
) {
    let i = ABSOLUTE_POS;
    if i < table.len() {
        table[i] = value_at(words, factors, i / d_in, i % d_in, d_in, layout);
    }
}

/// The columns `ids`, `[tokens, d_in]`.
#[cube(launch)]
pub(super) fn gather(
    words: &[u32],
    factors: &[u32],
    ids: &[i32],
    out: &mut [f32],
    d_in: usize,
    #[comptime] layout: Layout,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        out[i] = value_at(
            words,
            factors,
            ids[i / d_in] as usize,
            i % d_in,
            d_in,
            layout,
        );
    }
}

#[cube]
fn value_at(
    words: &[u32],
    factors: &[u32],
    column: usize,
    inner: usize,
    d_in: usize,
    #[comptime] layout: Layout,
) -> f32 {
    let bits = comptime!(layout.bits);
    let per_word = comptime!(32 / layout.bits);
    let blocks = d_in.div_ceil(32);
    let word = words[column * blocks * bits + inner / per_word];
    let factor = factors[column * blocks + inner / 32];
    let scale = scale_of(factor, layout);
    let minimum = minimum_of(factor, layout);
    value_of(
        word >> ((inner % per_word * bits) as u32),
        scale,
        minimum,
        layout,
    )
}

/// The value whose integer is in the lowest bits of `word`.
#[cube]
fn value_of(word: u32, scale: f32, minimum: f32, #[comptime] layout: Layout) -> f32 {
    let mask = comptime!((1u32 << layout.bits) - 1u32);
    let integer = (word & mask) as f32;
    let value = (integer - comptime!(layout.offset as f32).runtime()) * scale;
    if comptime!(layout.has_minimum) {
        value + minimum
    } else {
        value
    }
}

#[cube]
fn scale_of(factor: u32, #[comptime] layout: Layout) -> f32 {
    half(factor & 0xffffu32, layout)
}

#[cube]
fn minimum_of(factor: u32, #[comptime] layout: Layout) -> f32 {
    if comptime!(layout.has_minimum) {
        half(factor >> 16u32, layout)
    } else {
        0.0f32.runtime()
    }
}

/// The value of 16 bits. Adapters may lack the type, and take small numbers of 32 bits for 0.
#[cube]
fn half(bits: u32, #[comptime] layout: Layout) -> f32 {
    if comptime!(layout.is_f16) {
        let magnitude = bits & 0x7fffu32;
        let subnormal = magnitude as f32 * 5.960_464_5e-8f32; // 2^-24
        let bias = select(magnitude >= 0x7c00u32, 0x7000_0000u32, 0x3800_0000u32);
        let normal = f32::reinterpret((magnitude << 13u32) + bias);
        let value = select(magnitude < 0x400u32, subnormal, normal);
        select(bits > 0x7fffu32, -value, value)
    } else {
        f32::reinterpret(bits << 16u32)
    }
}
