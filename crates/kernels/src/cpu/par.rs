//! Parallel loops whose results do not depend on the number of threads.
//!
//! Work is partitioned by shape alone, and each task writes only its own part of the output; sums
//! across tasks are added in task order.

use std::cell::Cell;
use std::num::NonZero;
use std::sync::OnceLock;

use super::thread_pool;

/// Work of fewer basic operations runs on the calling thread: waking another thread costs about as
/// much.
const MIN_PARALLEL_COST: usize = 1 << 15;

/// Elements per task of elementwise work: 64 KiB, so that several operands fit in the L2 cache.
pub(crate) const CHUNK: usize = 1 << 14;

thread_local! {
    /// The limit set by [`with_threads`], or 0.
    static LIMIT: Cell<usize> = const { Cell::new(0) };
}

/// Returns the number of threads that a call from this thread uses.
pub(crate) fn threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    match LIMIT.get() {
        0 => *DEFAULT.get_or_init(|| {
            let variable = std::env::var("RAYON_NUM_THREADS").ok();
            let set = variable.and_then(|value| value.parse().ok());
            set.filter(|count| *count > 0)
                .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get))
        }),
        limit => limit,
    }
}

/// Runs `work` with `threads` threads for each kernel that it calls, including the calling thread.
/// The results of the kernels do not depend on it.
///
/// Without it, kernels use as many threads as the machine has logical cores, or as the environment
/// variable `RAYON_NUM_THREADS` says.
///
/// # Panics
/// If `threads` is 0.
///
/// # Examples
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// use nextword_kernels::{parallel_for_each, with_threads};
///
/// let sum = AtomicUsize::new(0);
/// with_threads(1, || {
///     parallel_for_each(100, 1 << 10, |i| {
///         sum.fetch_add(i, Ordering::Relaxed);
///     });
/// });
/// assert_eq!(sum.into_inner(), 4950);
/// ```
pub fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    /// Restores the previous limit, also after a panic.
    struct Restore(usize);

    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }

    assert!(threads > 0, "the number of threads must not be 0");
    let _restore = Restore(LIMIT.replace(threads));
    work()
}

/// Runs `task(i)` for all `i` below `count` on `threads` threads, which include the calling thread.
///
/// Threads take the tasks in order from a counter, so a thread on a busy core runs fewer of them.
pub(crate) fn run(threads: usize, count: usize, task: &(impl Fn(usize) + Sync)) {
    if threads <= 1 || count <= 1 {
        (0..count).for_each(task);
        return;
    }
    thread_pool::run(threads, count, task);
}

/// Runs `task(i)` for all `i` below `count` on all cores; `cost` is the approximate number of basic
/// operations per task, by which small tasks are grouped.
///
/// Uses the thread pool of the kernels. Calls may be nested: inner ones run on the calling thread. A
/// panic of a task reaches the caller.
///
/// # Examples
/// ```
/// use std::sync::OnceLock;
///
/// let squares = [const { OnceLock::new() }; 8];
/// nextword_kernels::parallel_for_each(8, 1 << 20, |i| {
///     squares[i].set(i * i).expect("each task runs once");
/// });
/// assert_eq!(squares[7].get(), Some(&49));
/// ```
pub fn for_each(count: usize, cost: usize, task: impl Fn(usize) + Sync) {
    if count <= 1 || count.saturating_mul(cost) < MIN_PARALLEL_COST {
        (0..count).for_each(task);
        return;
    }
    let batch = (MIN_PARALLEL_COST / 4 / cost.max(1)).clamp(1, count);
    run(threads(), count.div_ceil(batch), &|group| {
        (group * batch..count.min((group + 1) * batch)).for_each(&task);
    });
}

/// Runs `work(start, len)` over `0..len` in chunks of [`CHUNK`]. The first chunk is shortened so
/// that all others start at a cache line of `out`. For elementwise work only: the chunk boundaries
/// depend on an address.
pub(crate) fn for_each_chunk(len: usize, out: *const f32, work: impl Fn(usize, usize) + Sync) {
    let prefix = (out.align_offset(64)).min(len);
    for_each(1 + (len - prefix).div_ceil(CHUNK), CHUNK.min(len), |i| {
        if i == 0 {
            work(0, prefix);
        } else {
            let start = prefix + (i - 1) * CHUNK;
            work(start, CHUNK.min(len - start));
        }
    });
}

/// Rows of `width` elements per task of row-wise work, about [`CHUNK`] elements.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Runs `group(first, count)` over `0..rows` in fixed groups of about [`CHUNK`] elements.
pub(crate) fn for_each_row_group(rows: usize, width: usize, group: impl Fn(usize, usize) + Sync) {
    let per_group = rows_per_task(width);
    for_each(rows.div_ceil(per_group), per_group.min(rows) * width, |i| {
        let first = i * per_group;
        group(first, per_group.min(rows - first));
    });
}

/// A pointer shared by tasks on several threads, each of which accesses its own elements.
pub(crate) struct Shared<T>(*mut T);

// Not derived: `#[derive(Clone)]` would require `T: Clone`.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: the pointer is only dereferenced through `unsafe` methods, whose callers guarantee that
// no two threads access the same element unless both only read.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: `Shared` gives no safe access to its elements, so sharing it is as sound as sending it.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares `data` between tasks.
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// Shares `data` between tasks that only read it.
    pub(crate) fn read_only(data: &[T]) -> Self {
        Self(data.as_ptr().cast_mut())
    }

    /// Returns a pointer to element `index`.
    ///
    /// # Safety
    /// `index` must not exceed the length of the slice.
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller guarantees that `index` is within the bounds of the slice.
        unsafe { self.0.add(index) }
    }

    /// Returns a pointer to the first element.
    pub(crate) fn as_ptr(self) -> *mut T {
        self.0
    }

    /// Returns the `len` elements from `start` on.
    ///
    /// # Safety
    /// The elements must be within the slice, and nothing else may access them while the result is
    /// alive.
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller guarantees that the range is within the slice and not accessed
        // otherwise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
