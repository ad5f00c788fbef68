//! Thread-local, cache-line aligned scratch memory for packed panels.
//!
//! A buffer grows to the largest request of its thread and stays, so that a training step
//! allocates nothing after the first one.

use std::cell::Cell;

/// One cache line; gives the buffer its alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

thread_local! {
    static BUFFER: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with two aligned buffers of at least `first` and `second` words.
///
/// The contents are whatever the last user left. The buffer is taken out of the thread's slot
/// while `f` runs, so that a nested call gets a buffer of its own rather than an alias.
pub(crate) fn with_scratch<R>(
    first: usize,
    second: usize,
    f: impl FnOnce(&mut [u32], &mut [u32]) -> R,
) -> R {
    let (head, tail) = (first.div_ceil(16), second.div_ceil(16));
    let mut buffer = BUFFER.take();
    if buffer.len() < head + tail {
        buffer.resize(head + tail, Line([0; 16]));
    }
    let (a, b) = buffer.split_at_mut(head);
    let result = f(words(a), words(&mut b[..tail]));
    BUFFER.set(buffer);
    result
}

/// The lines as plain words.
fn words(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a `Line` is sixteen `u32` without padding, and the borrow passes on.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// Releases the scratch memory of the calling thread.
pub fn release_scratch() {
    BUFFER.take();
}
