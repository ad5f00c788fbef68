//! Parallel loops whose results do not depend on the number of threads.
//!
//! Work is always cut the same way, by shape alone, and each unit writes only its own part of the
//! output; sums across units are added up in the order of the units.

use super::thread_pool;

/// Work below this many basic operations is done on the calling thread: waking another costs
/// about as much.
const MIN_PARALLEL_COST: usize = 1 << 15;

/// Numbers per unit of elementwise work: 64 KiB, so that a few operands fit the L2 cache.
pub(crate) const CHUNK: usize = 1 << 14;

/// Runs `unit(i)` for all `i` below `count` on all cores; `cost` is about how many basic operations one
/// takes.
pub fn for_each(count: usize, cost: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 || count.saturating_mul(cost) < MIN_PARALLEL_COST {
        (0..count).for_each(task);
        return;
    }
    // Small units are taken several at a time.
    let batch = (MIN_PARALLEL_COST / 4 / cost.max(1)).clamp(1, count);
    thread_pool::run(count.div_ceil(batch), &|group| {
        (group * batch..count.min((group + 1) * batch)).for_each(&task);
    });
}

/// Runs `range(start, len)` over `0..len` in chunks of [`CHUNK`], the first of which is so short
/// that all others begin at a cache line of `out`. For elementwise work only: where chunks begin
/// depends on an address.
pub(crate) fn for_each_chunk(
    len: usize,
    out: *const f32,
    work: impl Fn(usize, usize) + Sync + Send,
) {
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

/// Rows of `width` numbers per unit of row-wise work, about [`CHUNK`] numbers.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Runs `rows(first, count)` over `0..rows` in fixed groups of about [`CHUNK`] numbers.
pub(crate) fn for_each_row_group(
    rows: usize,
    width: usize,
    group: impl Fn(usize, usize) + Sync + Send,
) {
    let per_group = rows_per_task(width);
    for_each(rows.div_ceil(per_group), per_group.min(rows) * width, |i| {
        let first = i * per_group;
        group(first, per_group.min(rows - first));
    });
}

/// A pointer that units on several threads write through, each to its own places.
pub(crate) struct Shared<T>(*mut T);

// By hand: deriving would ask for `T: Copy`.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: whoever writes through the pointer promises that no two threads touch one place.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares `data` between units.
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr())
    }

    /// Shares `data` between units that only read it.
    pub(crate) fn read_only(data: &[T]) -> Self {
        Self(data.as_ptr().cast_mut())
    }

    /// The address of place `at`.
    ///
    /// # Safety
    /// `at` must lie in the slice.
    pub(crate) unsafe fn at(self, at: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(at) }
    }

    /// The address of the first place.
    pub(crate) fn as_ptr(self) -> *const T {
        self.0
    }

    /// `len` places from `at` on.
    ///
    /// # Safety
    /// The places must lie in the slice, and no one else may touch them while the result lives.
    pub(crate) unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}
