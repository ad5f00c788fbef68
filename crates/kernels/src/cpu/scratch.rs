//! Thread-local scratch buffers, so that kernels allocate nothing after the first training step.

use std::cell::Cell;

/// One cache line of floats. Scratch is aligned to cache lines, so that no register load crosses
/// two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine(#[expect(dead_code, reason = "only read through f32 pointers")] [f32; 16]);

thread_local! {
    static TASK: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
    static CALL: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// Scratch for one task: `len` floats with unspecified values (finite or not).
pub(crate) fn with_task_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    with_scratch(&TASK, len, work)
}

/// Scratch for a whole call, shared with other threads while they run its tasks.
pub(crate) fn with_call_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    with_scratch(&CALL, len, work)
}

/// Takes the buffer out of its cell while in use: if rayon starts other work on this thread in the
/// meantime, that work finds an empty cell and allocates its own buffer.
fn with_scratch<R>(
    cell: &'static std::thread::LocalKey<Cell<Vec<CacheLine>>>,
    len: usize,
    work: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut lines = cell.take();
    let needed = len.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, CacheLine([0.0; 16]));
    }
    // SAFETY: a `CacheLine` is 16 floats without padding, and the vector has at least `len` floats.
    let floats = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) };
    let result = work(floats);
    cell.set(lines);
    result
}

/// Rounds up to whole cache lines, for splitting scratch into aligned parts.
pub(crate) const fn padded_len(len: usize) -> usize {
    len.div_ceil(16) * 16
}
