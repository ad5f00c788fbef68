//! Strided views of arrays `[batch, seq, heads, head_dim]`.

use super::par::Shared;

/// Strides in elements; the elements of one head are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strides {
    /// From one sequence to the next.
    pub(crate) batch: usize,
    /// From one token to the next.
    pub(crate) seq: usize,
    /// From one head to the next.
    pub(crate) head: usize,
}

impl Strides {
    /// Strides of a contiguous array `[batch, seq, heads, head_dim]`.
    pub(crate) fn token_first(seq: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch: seq * heads * head_dim,
            seq: heads * head_dim,
            head: head_dim,
        }
    }
}

/// A read-only view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The elements, starting at sequence, token and head 0.
    pub(crate) data: &'a [f32],
    /// Strides between the elements.
    pub(crate) strides: Strides,
}

/// A writable view.
#[derive(Debug)]
pub(crate) struct ViewMut<'a> {
    /// The elements, starting at sequence, token and head 0.
    pub(crate) data: &'a mut [f32],
    /// Strides between the elements.
    pub(crate) strides: Strides,
}

/// Strided rows: row r starts at `ptr + r * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<P> {
    pub(crate) ptr: P,
    pub(crate) stride: usize,
}

/// The sizes `[batch, seq, heads, head_dim]`.
pub(crate) type Sizes = [usize; 4];

/// Panics unless every element of an array of these sizes is within `len` elements.
fn check_bounds(strides: Strides, sizes @ [batch, seq, heads, dim]: Sizes, len: usize) {
    if sizes.contains(&0) {
        return;
    }
    // Saturates on overflow: such a view exceeds any slice.
    let end = (batch - 1)
        .saturating_mul(strides.batch)
        .saturating_add((seq - 1).saturating_mul(strides.seq))
        .saturating_add((heads - 1).saturating_mul(strides.head))
        .saturating_add(dim);
    assert!(end <= len, "the view exceeds its data");
}

/// Panics if two indices of an array of these sizes refer to the same element, which threads could
/// then write concurrently.
fn check_distinct(strides: Strides, sizes @ [batch, seq, heads, dim]: Sizes) {
    if sizes.contains(&0) {
        return;
    }
    let mut axes = [
        (strides.batch, batch),
        (strides.seq, seq),
        (strides.head, heads),
    ];
    axes.sort_unstable();
    let mut span = dim;
    for (stride, size) in axes.into_iter().filter(|(_, size)| *size > 1) {
        assert!(stride >= span, "the view overlaps itself");
        span = span.saturating_add(stride.saturating_mul(size - 1));
    }
}

/// A bounds-checked read-only view, shared between threads.
#[derive(Clone, Copy)]
pub(crate) struct SharedView {
    data: *const f32,
    strides: Strides,
}

// SAFETY: the data is only read, and the borrow it was created from outlives the call that uses it.
unsafe impl Send for SharedView {}
// SAFETY: the data is only read, so concurrent access from several threads is sound.
unsafe impl Sync for SharedView {}

impl SharedView {
    pub(crate) fn new(view: View<'_>, sizes: Sizes) -> Self {
        check_bounds(view.strides, sizes, view.data.len());
        Self {
            data: view.data.as_ptr(),
            strides: view.strides,
        }
    }

    /// The tokens of one head, starting at `first`.
    ///
    /// # Safety
    /// The indices must be within the sizes that the view was created with.
    pub(crate) unsafe fn tokens(self, batch: usize, head: usize, first: usize) -> Rows<*const f32> {
        let Strides {
            batch: b,
            seq,
            head: h,
        } = self.strides;
        Rows {
            // `new` checked that every element is in bounds. An array without tokens has none, and
            // the pointer to its first token may then lie outside of the data; it is never read.
            ptr: self.data.wrapping_add(batch * b + head * h + first * seq),
            stride: seq,
        }
    }
}

/// A bounds-checked writable view, shared between threads that write disjoint elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedViewMut {
    data: Shared<f32>,
    strides: Strides,
}

impl SharedViewMut {
    pub(crate) fn new(view: ViewMut<'_>, sizes: Sizes) -> Self {
        check_bounds(view.strides, sizes, view.data.len());
        check_distinct(view.strides, sizes);
        Self {
            data: Shared::new(view.data),
            strides: view.strides,
        }
    }

    /// The tokens of one head, starting at `first`.
    ///
    /// # Safety
    /// The indices must be within the sizes that the view was created with.
    pub(crate) unsafe fn tokens(self, batch: usize, head: usize, first: usize) -> Rows<*mut f32> {
        let Strides {
            batch: b,
            seq,
            head: h,
        } = self.strides;
        Rows {
            // As in `SharedView::tokens`, the pointer may lie outside of the data only if there are
            // no tokens.
            ptr: self
                .data
                .as_ptr()
                .wrapping_add(batch * b + head * h + first * seq),
            stride: seq,
        }
    }
}
