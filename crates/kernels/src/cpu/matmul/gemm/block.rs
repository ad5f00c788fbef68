//! The block of an operand that is packed at a time.

use std::ops::Range;

use crate::cpu::matmul::matrix::{MatRef, extent};

/// The block of an operand to pack. All of its elements are within the operand's data.
///
/// Panels hold rows of A or columns of B. `panel_stride` is the stride between these rows or columns,
/// `k_stride` the stride along k.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// The operand's elements from the first of the block on.
    data: &'a [f32],
    panel_stride: usize,
    k_stride: usize,
    len: usize,
    kc: usize,
}

impl<'a> Block<'a> {
    /// Selects `rows` of `m`, and the columns `k`.
    ///
    /// # Panics
    /// If the block is not within `m`.
    pub(super) fn from_rows(m: &MatRef<'a>, rows: &Range<usize>, k: &Range<usize>) -> Self {
        assert!(rows.end <= m.rows && k.end <= m.cols);
        // Overflows for no block with an element, since `MatRef::new` checked that all are within the
        // slice.
        let start = rows.start.saturating_mul(m.row_stride);
        let start = start.saturating_add(k.start.saturating_mul(m.col_stride));
        let data = m.data.get(start..).unwrap_or_default();
        assert!(extent(rows.len(), k.len(), m.row_stride, m.col_stride) <= data.len());
        Self {
            data,
            panel_stride: m.row_stride,
            k_stride: m.col_stride,
            len: rows.len(),
            kc: k.len(),
        }
    }

    /// The stride between rows of A or columns of B.
    #[inline(always)]
    pub(super) fn panel_stride(&self) -> usize {
        self.panel_stride
    }

    /// The stride along k.
    #[inline(always)]
    pub(super) fn k_stride(&self) -> usize {
        self.k_stride
    }

    /// Number of rows of A or columns of B.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Number of elements along k.
    #[inline(always)]
    pub(super) fn kc(&self) -> usize {
        self.kc
    }

    /// Returns the elements from element `k` of row `i` on.
    #[inline(always)]
    pub(super) fn elements(&self, i: usize, k: usize) -> &'a [f32] {
        &self.data[i * self.panel_stride + k * self.k_stride..]
    }

    /// Returns the address of element `k` of row `i`, which need not exist.
    #[inline(always)]
    pub(super) fn address(&self, i: usize, k: usize) -> *const f32 {
        let offset = i.wrapping_mul(self.panel_stride);
        let offset = offset.wrapping_add(k.wrapping_mul(self.k_stride));
        self.data.as_ptr().wrapping_add(offset)
    }
}
