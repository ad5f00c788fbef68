//! Strided matrix views, and rounding to bf16.

/// Returns the f32 bits of `value` rounded to bf16. Branch-free, so that loops vectorize.
#[inline(always)]
pub(crate) fn round_to_bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // The rounding carry could turn a NaN into infinity or even zero.
    let result = if value.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    };
    result & 0xffff_0000
}

/// Rounds to bf16, ties to even.
#[cfg(test)]
pub(crate) fn round_to_bf16(value: f32) -> f32 {
    f32::from_bits(round_to_bf16_bits(value))
}

/// A read-only matrix view with arbitrary strides; transposing is free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatRef<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// Creates a view in which element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    ///
    /// # Panics
    /// If any element lies outside `data`.
    pub(crate) fn new(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        assert!(
            extent(rows, cols, row_stride, col_stride) <= data.len(),
            "a {rows}x{cols} matrix with strides {row_stride} and {col_stride} needs more than \
             the {} elements given",
            data.len()
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    /// Creates a view of a contiguous row-major matrix.
    pub(crate) fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// Returns the transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A mutable row-major matrix view. Each row is contiguous.
#[derive(Debug)]
pub(crate) struct MatMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// Creates a view in which element `(i, j)` is `data[i * row_stride + j]`.
    ///
    /// # Panics
    /// If any element lies outside `data` or rows overlap.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            row_stride >= cols || rows <= 1,
            "result rows must not overlap"
        );
        assert!(
            extent(rows, cols, row_stride, 1) <= data.len(),
            "a {rows}x{cols} result with row stride {row_stride} needs more than the {} \
             elements given",
            data.len()
        );
        Self {
            data,
            rows,
            cols,
            row_stride,
        }
    }

    /// Creates a view of a contiguous matrix.
    pub(crate) fn row_major(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }
}

/// Returns the number of elements that a view with these strides spans.
///
/// Saturates on overflow: such an extent exceeds the length of any slice.
pub(crate) fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    (rows - 1)
        .saturating_mul(row_stride)
        .saturating_add((cols - 1).saturating_mul(col_stride))
        .saturating_add(1)
}
