//! Quantization of one block, and the choice of a format for a matrix.

use burn::tensor::f16;

use super::{BLOCK, Bits, BlockFormat, ColumnBlock, MAX_FACTORS, QuantMatrix, search};
use crate::cpu::matmul::matrix::MatRef;

/// Largest scale or minimum in f16.
const F16_MAX: f32 = 65504.0;
/// If the largest scale of a matrix is below this, f16 scales would be less precise than bf16.
const F16_MIN_SCALE: f32 = 1.0 / 65536.0;

impl QuantMatrix {
    /// Quantizes `w` (k by n, any strides) to `bits` bits: to `Q8_0` or `Q4_1` if their f16 scales can
    /// represent the values, otherwise to the symmetric format.
    ///
    /// A block that contains a non-finite value decodes to NaN. `importance` is that of the rows in the search for scales
    /// and minimums.
    pub(crate) fn quantize(w: MatRef<'_>, bits: Bits, importance: Option<&[f32]>) -> Self {
        let max_abs = max_finite(&w);
        let format = match bits {
            Bits::Int8 if has_f16_range(max_abs, 127.0) => BlockFormat::Q8_0,
            Bits::Int8 => BlockFormat::Symmetric8,
            Bits::Int4 if has_f16_range(max_abs, 15.0) => BlockFormat::Q4_1,
            Bits::Int4 => BlockFormat::Symmetric4,
        };
        Self::quantize_weighted(w, format, importance)
    }
}

/// Returns whether blocks of up to `levels` steps with this largest value have scales and minimums in
/// the range of f16.
fn has_f16_range(max_abs: f32, levels: f32) -> bool {
    max_abs == 0.0 || (max_abs / levels >= F16_MIN_SCALE && max_abs <= F16_MAX)
}

/// Returns the largest finite magnitude.
fn max_finite(w: &MatRef<'_>) -> f32 {
    let mut max = 0.0_f32;
    for i in 0..w.rows {
        for j in 0..w.cols {
            let value = w.data[i * w.row_stride + j * w.col_stride].abs();
            if value.is_finite() {
                max = max.max(value);
            }
        }
    }
    max
}

/// Quantizes the values of a block, of which the last one of a column can have fewer than the others.
pub(super) fn block(
    values: &[f32],
    format: BlockFormat,
    importance: Option<&[f32]>,
) -> ColumnBlock {
    if values.iter().any(|v| !v.is_finite()) {
        return ColumnBlock {
            integers: [format.offset() as u8; BLOCK],
            scale: if format.has_f16_scales() {
                0x7e00
            } else {
                0x7fc0
            },
            minimum: 0,
            factors: [0; MAX_FACTORS],
        };
    }
    match format {
        BlockFormat::Q4_1 => search::with_minimum(values, importance),
        _ => {
            let mut padded = [0.0; BLOCK];
            padded[..values.len()].copy_from_slice(values);
            without_minimum(&padded, format)
        }
    }
}

/// Rounds to the nearest multiples of the scale.
fn without_minimum(values: &[f32; BLOCK], format: BlockFormat) -> ColumnBlock {
    let largest = values
        .iter()
        .fold(0.0_f32, |a, v| if v.abs() > a.abs() { *v } else { a });
    let max = if format.bits() == 8 { 127 } else { 7 };
    let min = if format == BlockFormat::Q4_0 {
        -8
    } else {
        -max
    };
    let stored = match format {
        // The smallest scale that can represent the largest value. Rounding up cannot overflow: the
        // quotient is far below the largest f32.
        BlockFormat::Symmetric8 | BlockFormat::Symmetric4 => {
            let exact = (largest.abs() / max as f32).to_bits();
            ((exact + 0xffff) >> 16) as u16
        }
        // The value with the largest magnitude becomes -8.
        BlockFormat::Q4_0 => f16::from_f32(largest / -8.0).to_bits(),
        _ => f16::from_f32(largest.abs() / max as f32).to_bits(),
    };
    let scale = format.to_f32(stored);
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    ColumnBlock {
        integers: values.map(|value| {
            let q = ((value * inverse).round_ties_even() as i32).clamp(min, max);
            (q + format.offset()) as u8
        }),
        scale: stored,
        minimum: 0,
        factors: [0; MAX_FACTORS],
    }
}
