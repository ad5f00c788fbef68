//! Runs units of work on all cores, with the calling thread at work from the first moment.
//!
//! A training step is thousands of short calls one after the other. Waking a sleeping thread takes as
//! long as a small kernel runs, so the crew's threads wait awake for a moment after each call before
//! they sleep. The caller takes units itself, the crew joins in, and the caller waits only for those
//! that have begun. Units are taken in order from a counter; who runs which does not matter.
//!
//! There is one crew. A call made while it is at work (from within a unit, or from another thread)
//! begins on the calling thread alone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread of the crew waits awake before it sleeps.
const PATIENCE: Duration = Duration::from_micros(100);

/// Looks at the call before a waiting thread lets others have its core between two looks: a few
/// microseconds, since the next call of a step mostly comes sooner.
const KEEN: usize = 6;

/// Low bits of [`Crew::call`] that hold the number of helpers.
const HELPER_BITS: u32 = 16;

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
    /// What a helper's unit panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
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
    /// makes sure that one of the two sees the other (hence sequential consistency). A panic is the
    /// caller's to raise again: the thread lives on.
    fn help(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
        if !self.closed.load(Ordering::SeqCst)
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_units()))
        {
            *lock(&self.panic) = Some(panic);
        }
        self.active.fetch_sub(1, Ordering::SeqCst);
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
                thread::yield_now();
            }
        }
    }
}

/// The crew, and what it is to work on.
struct Crew {
    /// Whether a call is under way.
    busy: AtomicBool,
    /// The number of the call and, in the low bits, how many helpers it wants: threads whose number is
    /// below that.
    call: AtomicU64,
    job: Mutex<Option<Arc<Job>>>,
    threads: Mutex<Vec<Thread>>,
}

static CREW: Crew = Crew {
    busy: AtomicBool::new(false),
    call: AtomicU64::new(0),
    job: Mutex::new(None),
    threads: Mutex::new(Vec::new()),
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that could panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crew {
    /// The life of thread `number`.
    fn work(&self, number: usize) {
        let mut seen = 0;
        loop {
            seen = self.await_call(seen);
            let helpers = (seen & ((1 << HELPER_BITS) - 1)) as usize;
            if number >= helpers {
                continue;
            }
            let job = lock(&self.job).clone();
            if let Some(job) = job {
                job.help();
            }
        }
    }

    /// Waits until the call is not `seen` any more, and gives it.
    fn await_call(&self, seen: u64) -> u64 {
        let begin = Instant::now();
        for look in 0.. {
            for _ in 0..64 {
                let call = self.call.load(Ordering::SeqCst);
                if call != seen {
                    return call;
                }
                std::hint::spin_loop();
            }
            if begin.elapsed() > PATIENCE {
                break;
            }
            if look >= KEEN {
                thread::yield_now();
            }
        }
        loop {
            // A caller wakes after it has set the call: then parking returns at once.
            thread::park();
            let call = self.call.load(Ordering::SeqCst);
            if call != seen {
                return call;
            }
        }
    }

    /// Tells `helpers` threads of `job`; hires those that are missing, as far as the system gives them.
    fn summon(&'static self, job: &Arc<Job>, helpers: usize) {
        let mut threads = lock(&self.threads);
        while threads.len() < helpers {
            let number = threads.len();
            let name = format!("crew-{number}");
            let work = move || self.work(number);
            match thread::Builder::new().name(name).spawn(work) {
                Ok(handle) => threads.push(handle.thread().clone()),
                Err(_) => break, // Fewer will do: the caller takes what nobody else does.
            }
        }
        *lock(&self.job) = Some(Arc::clone(job));
        let number = (self.call.load(Ordering::SeqCst) >> HELPER_BITS) + 1;
        let call = number << HELPER_BITS | helpers as u64;
        self.call.store(call, Ordering::SeqCst);
        for thread in threads.iter().take(helpers) {
            thread.unpark();
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
/// together as the current rayon pool has. While another call has the crew, the calling thread works
/// alone, and asks again after each unit.
pub(crate) fn run(count: usize, unit: &(dyn Fn(usize) + Sync)) {
    let threads = rayon::current_num_threads().min(1 << (HELPER_BITS - 1));
    for done in 0..count {
        let helpers = (threads - 1).min(count - done - 1);
        if helpers > 0 && !CREW.busy.swap(true, Ordering::Acquire) {
            return run_together(count - done, helpers, &|i| unit(done + i));
        }
        unit(done);
    }
}

/// [`run`], once the crew is this call's.
fn run_together(count: usize, helpers: usize, unit: &(dyn Fn(usize) + Sync)) {
    let dismiss = Dismiss;
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
        panic: Mutex::new(None),
    });
    CREW.summon(&job, helpers);
    let close = Close(&job);
    job.take_units();
    drop(close);
    drop(dismiss);
    if let Some(panic) = lock(&job.panic).take() {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{AssertUnwindSafe, catch_unwind, run};

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
    fn calls_find_a_crew_that_has_gone_to_sleep() {
        for _ in 0..20 {
            std::thread::sleep(2 * super::PATIENCE);
            let runs = AtomicU32::new(0);
            run(50, &|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 50);
        }
    }

    #[test]
    fn a_panic_in_any_unit_reaches_the_caller_and_the_crew_lives_on() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let pool = pool.unwrap();
        for bad in 0..40 {
            let call = || {
                run(40, &|i| {
                    std::thread::yield_now();
                    assert_ne!(i, bad, "as planned");
                });
            };
            let caught = catch_unwind(AssertUnwindSafe(|| pool.install(call)));
            assert!(caught.is_err(), "unit {bad}");
        }
        let runs = AtomicU32::new(0);
        pool.install(|| {
            run(40, &|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(runs.into_inner(), 40);
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
