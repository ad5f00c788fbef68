//! Arrays `[batch, seq, heads, head_dim]` in whatever order they lie.

use super::par::Shared;

/// Numbers from one sequence, token or head to the next; those of a head lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From one sequence to the next.
    pub batch: usize,
    /// From one token to the next.
    pub seq: usize,
    /// From one head to the next.
    pub head: usize,
}

impl Strides {
    /// Of an array `[batch, seq, heads, head_dim]`.
    pub fn token_first(seq: usize, heads: usize, head_dim: usize) -> Self {
        Self {
            batch: seq * heads * head_dim,
            seq: heads * head_dim,
            head: head_dim,
        }
    }

    /// Of an array `[batch, heads, seq, head_dim]`.
    pub fn head_first(heads: usize, seq: usize, head_dim: usize) -> Self {
        Self {
            batch: seq * heads * head_dim,
            seq: head_dim,
            head: seq * head_dim,
        }
    }
}

/// An array to read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The numbers, from those of sequence, token and head 0 on.
    pub data: &'a [f32],
    /// How they lie.
    pub strides: Strides,
}

/// An array to write.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// The numbers, from those of sequence, token and head 0 on.
    pub data: &'a mut [f32],
    /// How they lie.
    pub strides: Strides,
}

/// Rows of numbers: row r starts at `at + r * row`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<P> {
    pub(crate) ptr: P,
    pub(crate) stride: usize,
}

/// The four sizes of an array.
pub(crate) type Sizes = [usize; 4];

/// Panics unless each place of an array of these sizes lies within `len` numbers.
fn check_bounds(strides: Strides, [batch, seq, heads, dim]: Sizes, len: usize) {
    if batch * seq * heads * dim == 0 {
        return;
    }
    let last = (batch - 1) * strides.batch + (seq - 1) * strides.seq + (heads - 1) * strides.head;
    assert!(last + dim <= len, "the view exceeds its data");
}

/// Panics if two places of an array of these sizes are the same number: threads may then not
/// write to it.
fn check_distinct(strides: Strides, [batch, seq, heads, dim]: Sizes) {
    if batch * seq * heads * dim == 0 {
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
        span += stride * (size - 1);
    }
}

/// A checked array, shared between threads.
#[derive(Clone, Copy)]
pub(crate) struct SharedView {
    data: *const f32,
    strides: Strides,
}

// SAFETY: only read, and the borrow it came from outlives the call it is used in.
unsafe impl Send for SharedView {}
// SAFETY: as above.
unsafe impl Sync for SharedView {}

impl SharedView {
    pub(crate) fn new(view: View<'_>, sizes: Sizes) -> Self {
        check_bounds(view.strides, sizes, view.data.len());
        Self {
            data: view.data.as_ptr(),
            strides: view.strides,
        }
    }

    /// The tokens of one head from `first` on.
    ///
    /// # Safety
    /// The place must exist.
    pub(crate) unsafe fn tokens(self, batch: usize, head: usize, first: usize) -> Rows<*const f32> {
        let Strides {
            batch: b,
            seq,
            head: h,
        } = self.strides;
        Rows {
            // SAFETY: checked when built.
            at: unsafe { self.data.add(batch * b + head * h + first * seq) },
            row: seq,
        }
    }
}

/// A checked array that threads write to, each its own places.
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

    /// The tokens of one head from `first` on.
    ///
    /// # Safety
    /// The place must exist.
    pub(crate) unsafe fn tokens(self, batch: usize, head: usize, first: usize) -> Rows<*mut f32> {
        let Strides {
            batch: b,
            seq,
            head: h,
        } = self.strides;
        Rows {
            // SAFETY: checked when built.
            at: unsafe { self.data.at(batch * b + head * h + first * seq) },
            row: seq,
        }
    }
}
