//! Thread-local, cache-line-aligned scratch buffers for packed panels.
//!
//! Each thread's buffer grows to the largest request and is reused, so only the first training
//! step allocates.

use std::cell::Cell;

/// One cache line; sets the alignment of the buffer.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

thread_local! {
    static BUFFER: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with two aligned buffers of at least `first` and `second` words.
///
/// The contents are unspecified. The thread-local is empty while `f` runs, so a nested call gets
/// its own buffer rather than an alias.
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

/// Reinterprets cache lines as words.
fn words(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a `Line` is sixteen `u32` without padding; the result borrows from `lines`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// Frees the scratch buffer of the calling thread.
pub fn release_scratch() {
    BUFFER.take();
}
