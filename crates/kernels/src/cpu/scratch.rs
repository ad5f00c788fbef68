//! Thread-local scratch buffers, so that kernels allocate nothing after the first training step.

use std::cell::Cell;
use std::thread::LocalKey;

/// One cache line. Scratch is aligned to cache lines, so that no register load crosses two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine(#[expect(dead_code, reason = "only read through other pointers")] [u32; 16]);

thread_local! {
    static TASK: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
    static CALL: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// The element type of a scratch buffer.
///
/// # Safety
/// The type must have 32 bits, an alignment of at most 64 bytes, and no invalid bit patterns.
pub(crate) unsafe trait Word: Copy {}

// SAFETY: all bit patterns of 32 bits are valid.
unsafe impl Word for f32 {}
// SAFETY: all bit patterns of 32 bits are valid.
unsafe impl Word for u32 {}

/// Scratch for one task: `len` elements with unspecified values (finite or not).
pub(crate) fn with_task_scratch<T: Word, R>(len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    with_scratch(&TASK, len, work)
}

/// Scratch for a whole call, shared with other threads while they run its tasks.
pub(crate) fn with_call_scratch<T: Word, R>(len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    with_scratch(&CALL, len, work)
}

/// Takes the buffer out of its cell while in use: a nested call finds an empty cell and allocates
/// its own buffer.
fn with_scratch<T: Word, R>(
    cell: &'static LocalKey<Cell<Vec<CacheLine>>>,
    len: usize,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut lines = cell.take();
    let needed = len.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, CacheLine([0; 16]));
    }
    // SAFETY: a `CacheLine` is 16 words without padding, the vector has at least `len` words, and
    // they are valid for every `Word`.
    let words = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) };
    let result = work(words);
    cell.set(lines);
    result
}

/// Rounds up to whole cache lines, for splitting scratch into aligned parts.
pub(crate) const fn padded_len(len: usize) -> usize {
    len.next_multiple_of(16)
}
