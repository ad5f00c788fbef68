//! Work sharing over rayon's threads.

use crate::cpu::crew;

/// How many threads a call may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// All threads of the current rayon pool.
    #[default]
    Pool,
    /// At most this many of them; `Max(1)` runs on the calling thread.
    Max(usize),
}

impl Threads {
    /// The number of workers for `tasks` tasks.
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
/// The workers draw task numbers from a counter: a worker whose core is busy elsewhere takes
/// fewer. Tasks must not depend on each other; which worker runs one must not change its result.
pub(crate) fn run(workers: usize, tasks: usize, task: &(impl Fn(usize) + Sync)) {
    if workers <= 1 || tasks <= 1 {
        (0..tasks).for_each(task);
        return;
    }
    crew::run(tasks, task);
}

/// A pointer that tasks share; each task touches a region of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: the users of `SharedMut` give every task a disjoint region.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// Shares `p`.
    pub(crate) fn new(p: *mut f32) -> Self {
        Self(p)
    }

    /// The pointer; a method, so that closures capture the wrapper and not the field.
    pub(crate) fn get(self) -> *mut f32 {
        self.0
    }
}
