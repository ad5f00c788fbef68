//! Strided matrix views and the bf16 storage type.

/// A bfloat16 value: the upper half of an f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// Rounds to nearest, ties to even. NaN stays NaN.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        Self((round_to_bf16_bits(value) >> 16) as u16)
    }

    /// Returns the exact f32 value.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

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

/// A read-only matrix view with arbitrary strides; transposing is free.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T = f32> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a, T> MatRef<'a, T> {
    /// Creates a view in which element `(i, j)` is `data[i * row_stride + j * col_stride]`.
    ///
    /// # Panics
    /// If any element lies outside `data`.
    pub fn new(
        data: &'a [T],
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
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// Returns the transposed view.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// A mutable row-major matrix view. Each row is contiguous.
#[derive(Debug)]
pub struct MatMut<'a> {
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
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
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
    pub fn row_major(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
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
