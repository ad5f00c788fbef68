//! Runs units of work on all cores, with the calling thread at work from the first moment.
//!
//! A training step is thousands of short calls one after the other. Waking a sleeping thread takes as
//! long as a small kernel runs, so the crew's threads wait awake for a moment after each call before
//! they sleep. The caller takes units itself, the crew joins in, and the caller waits only for those
//! that have begun. Units are taken in order from a counter; who runs which does not matter.
//!
//! There is one crew. A call made while it is at work (from within a unit, or from another thread)
//! runs on the calling thread alone.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Turns of the waiting loop before a thread of the crew sleeps: about a tenth of a millisecond.
const PATIENCE: u32 = 4000;

/// One call's work.
struct Job {
    /// The work, whose true lifetime is that of the call.
    unit: *const (dyn Fn(usize) + Sync),
    count: usize,
    /// Threads of the crew that may help.
    helpers: usize,
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

    /// The share of a thread of the crew.
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

/// The crew, and what it is to work on.
struct Crew {
    /// Whether a call is under way.
    busy: AtomicBool,
    /// Counts calls: a change is what the waiting threads look for.
    calls: AtomicUsize,
    job: Mutex<Option<Arc<Job>>>,
    /// Threads that exist.
    threads: Mutex<usize>,
    /// Threads that sleep.
    sleeping: AtomicUsize,
    bell: (Mutex<()>, Condvar),
}

static CREW: Crew = Crew {
    busy: AtomicBool::new(false),
    calls: AtomicUsize::new(0),
    job: Mutex::new(None),
    threads: Mutex::new(0),
    sleeping: AtomicUsize::new(0),
    bell: (Mutex::new(()), Condvar::new()),
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that could panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// Sees to it that there are `wanted` threads, as far as the system gives them.
    fn hire(&'static self, wanted: usize) {
        let mut threads = lock(&self.threads);
        while *threads < wanted {
            let number = *threads;
            let name = format!("crew-{number}");
            let work = move || self.work(number);
            if thread::Builder::new().name(name).spawn(work).is_err() {
                return; // Fewer will do: the caller takes what nobody else does.
            }
            *threads += 1;
        }
    }

    /// The life of thread `number`.
    fn work(&self, number: usize) {
        let mut seen = 0;
        loop {
            seen = self.await_call(seen);
            let job = lock(&self.job).clone();
            if let Some(job) = job.filter(|job| number < job.helpers) {
                job.help();
            }
        }
    }

    /// Waits until the number of calls is not `seen` any more, and gives it.
    fn await_call(&self, seen: usize) -> usize {
        for _ in 0..PATIENCE {
            let calls = self.calls.load(Ordering::Acquire);
            if calls != seen {
                return calls;
            }
            std::hint::spin_loop();
        }
        let mut night = lock(&self.bell.0);
        // Going to sleep before a last look at `calls`, while the caller counts the call before it
        // looks at who sleeps, makes sure that one of the two sees the other.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        loop {
            let calls = self.calls.load(Ordering::SeqCst);
            if calls != seen {
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                return calls;
            }
            night = self
                .bell
                .1
                .wait(night)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells everyone of `job`.
    fn call(&self, job: &Arc<Job>) {
        *lock(&self.job) = Some(Arc::clone(job));
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.bell.0));
            self.bell.1.notify_all();
        }
    }
}

/// Lets the crew go when a call ends, after a panic too.
struct Dismiss;

impl Drop for Dismiss {
    fn drop(&mut self) {
        *lock(&CREW.job) = None;
        CREW.busy.store(false, Ordering::Release);
    }
}

/// Runs `unit(i)` once for each `i` below `count`, on the calling thread and the crew: as many threads
/// together as the current rayon pool has.
pub(crate) fn run(count: usize, unit: &(dyn Fn(usize) + Sync)) {
    let helpers = (rayon::current_num_threads() - 1).min(count.saturating_sub(1));
    if helpers == 0 || CREW.busy.swap(true, Ordering::Acquire) {
        (0..count).for_each(unit);
        return;
    }
    let dismiss = Dismiss;
    CREW.hire(helpers);
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
        helpers,
        next: AtomicUsize::new(0),
        active: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
    });
    CREW.call(&job);
    let close = Close(&job);
    job.take_units();
    drop(close);
    drop(dismiss);
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
