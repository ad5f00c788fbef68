//! Memory that each thread keeps for its kernels, so that none is allocated in a training step
//! after the first.

use std::cell::Cell;

/// One cache line of numbers: scratch starts at a cache line, so that no register straddles two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct CacheLine(#[expect(dead_code, reason = "only read through f32 pointers")] [f32; 16]);

thread_local! {
    static TASK: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
    static CALL: Cell<Vec<CacheLine>> = const { Cell::new(Vec::new()) };
}

/// Scratch of one unit of work: `len` numbers left over from earlier work (finite or not).
pub(crate) fn with_task_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    with_scratch(&TASK, len, work)
}

/// Scratch of a whole call, which lives while other threads work on its units.
pub(crate) fn with_call_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    with_scratch(&CALL, len, work)
}

/// The memory is taken out of its cell while lent: if rayon starts other work on this thread in
/// the meantime, that work finds an empty cell and allocates its own.
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
    // SAFETY: a `Line` is 16 floats without padding, and the vector holds at least `len` floats.
    let floats = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) };
    let result = work(floats);
    cell.set(lines);
    result
}

/// Rounds up to whole cache lines, for cutting scratch into parts.
pub(crate) const fn padded_len(len: usize) -> usize {
    len.div_ceil(16) * 16
}
