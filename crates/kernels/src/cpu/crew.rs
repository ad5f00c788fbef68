//! Runs units of work on all cores, with the calling thread at work from the first moment.
//!
//! Rayon's parallel iterators hand everything to pool threads and put a caller from outside to
//! sleep: two changes of threads in each call, which short kernels feel. Here the caller takes
//! units itself, pool threads join in when they wake up, and the caller waits only for those that
//! have begun. Units are taken in order from a counter; who runs which does not matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// One call's work.
struct Job {
    /// The work, whose true lifetime is that of the call.
    unit: *const (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    /// Helpers at work.
    active: AtomicUsize,
    /// Set when the call ends: who comes later finds nothing to do.
    closed: AtomicBool,
}

// SAFETY: `unit` is shared (`Sync`), and only followed while the call waits for those who do.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    fn take_units(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            // SAFETY: the call has not returned: it waits until no helper is active.
            unsafe { (*self.unit)(i) };
        }
    }

    /// A pool thread's share.
    ///
    /// Signing in before looking at `closed`, while the caller closes before looking at `active`,
    /// makes sure that one of the two sees the other (hence sequential consistency).
    fn help(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
        let _leave = Leave(self);
        if !self.closed.load(Ordering::SeqCst) {
            self.take_units();
        }
    }
}

/// Signs a helper out, after a panic too.
struct Leave<'a>(&'a Job);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends a call, after a panic too: the work may go once no helper is at it.
struct Close<'a>(&'a Job);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        let mut spins = 0_u32;
        while self.0.active.load(Ordering::SeqCst) > 0 {
            spins += 1;
            if spins < 2000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs `unit(i)` once for each `i` below `count`, on the calling thread and the pool's.
pub(crate) fn run(count: usize, unit: &(dyn Fn(usize) + Sync)) {
    let helpers = (rayon::current_num_threads() - 1).min(count.saturating_sub(1));
    if helpers == 0 {
        (0..count).for_each(unit);
        return;
    }
    #[expect(
        clippy::transmute_ptr_to_ptr,
        reason = "a cast may not lengthen the lifetime inside `dyn`"
    )]
    // SAFETY: only the lifetime changes, and `Close` keeps this call from ending while anyone may
    // still follow the pointer.
    let unit = unsafe {
        std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
            unit,
        )
    };
    let job = Arc::new(Job {
        unit,
        count,
        next: AtomicUsize::new(0),
        active: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
    });
    for _ in 0..helpers {
        let job = Arc::clone(&job);
        rayon::spawn(move || job.help());
    }
    let close = Close(&job);
    job.take_units();
    drop(close);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU32, Ordering};

    use super::run;

    #[test]
    fn each_unit_runs_once_in_calls_from_anywhere() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .build()
            .unwrap();
        let calls = || {
            for count in (0..3000).map(|i| i % 40) {
                let runs: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                run(count, &|i| {
                    runs[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(calls);
            scope.spawn(|| pool.install(calls));
            scope.spawn(|| pool.join(calls, calls));
        });
    }

    #[test]
    fn calls_may_be_nested() {
        let total = AtomicU32::new(0);
        run(8, &|_| {
            run(8, &|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 64);
    }
}
