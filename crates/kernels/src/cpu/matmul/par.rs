//! Splits work across the thread pool.

use crate::cpu::thread_pool;

/// Maximum number of threads of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// All threads of the current rayon pool.
    #[default]
    Pool,
    /// At most this many of them; `Max(1)` runs on the calling thread only.
    Max(usize),
}

impl Threads {
    /// Returns the number of workers for `tasks` tasks.
    pub(crate) fn workers(self, tasks: usize) -> usize {
        let limit = match self {
            Self::Max(1) => 1,
            Self::Pool => rayon::current_num_threads(),
            Self::Max(n) => n.min(rayon::current_num_threads()),
        };
        limit.min(tasks).max(1)
    }
}

/// Runs `task(0..tasks)` on `workers` threads.
///
/// Workers claim task indices from a shared counter, so a worker on a busy core runs fewer tasks.
/// Tasks must be independent, and their results must not depend on which worker runs them.
pub(crate) fn parallel_for(workers: usize, tasks: usize, task: &(impl Fn(usize) + Sync)) {
    if workers <= 1 || tasks <= 1 {
        (0..tasks).for_each(task);
        return;
    }
    thread_pool::run(tasks, task);
}

/// A mutable pointer shared between tasks, each of which accesses a disjoint region.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: the users of `SharedMut` give every task a disjoint region.
unsafe impl Send for SharedMut {}
// SAFETY: shared access is sound for the same reason: no two tasks touch the same element.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// Wraps `p`.
    pub(crate) fn new(p: *mut f32) -> Self {
        Self(p)
    }

    /// Returns the pointer. A method, so that closures capture the wrapper rather than the field.
    pub(crate) fn get(self) -> *mut f32 {
        self.0
    }
}
