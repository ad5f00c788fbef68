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
const SPIN_TIME: Duration = Duration::from_micros(100);

/// Looks at the call before a waiting thread lets others have its core between two looks: a few
/// microseconds, since the next call of a step mostly comes sooner.
const SPINS_BEFORE_YIELD: usize = 6;

/// Low bits of [`Crew::call`] that hold the number of helpers.
const WORKER_BITS: u32 = 16;

/// One call's work.
struct Job {
    /// The work, whose true lifetime is that of the call.
    task: *const (dyn Fn(usize) + Sync),
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
    fn run_tasks(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            // SAFETY: the call has not returned: it waits until no helper is active.
            unsafe { (*self.task)(i) };
        }
    }

    /// The share of a thread of the crew.
    ///
    /// Signing in before looking at `closed`, while the caller closes before looking at `active`,
    /// makes sure that one of the two sees the other (hence sequential consistency). A panic is the
    /// caller's to raise again: the thread lives on.
    fn run_worker(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
        if !self.closed.load(Ordering::SeqCst)
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_tasks()))
        {
            *lock(&self.panic) = Some(panic);
        }
        self.active.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends a call, after a panic too: the work may go once no helper is at it.
struct JoinGuard<'a>(&'a Job);

impl Drop for JoinGuard<'_> {
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
struct ThreadPool {
    /// Whether a call is under way.
    busy: AtomicBool,
    /// The number of the call and, in the low bits, how many helpers it wants: threads whose number is
    /// below that.
    call: AtomicU64,
    job: Mutex<Option<Arc<Job>>>,
    threads: Mutex<Vec<Thread>>,
}

static POOL: ThreadPool = ThreadPool {
    busy: AtomicBool::new(false),
    call: AtomicU64::new(0),
    job: Mutex::new(None),
    threads: Mutex::new(Vec::new()),
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that could panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// The life of thread `number`.
    fn worker_loop(&self, index: usize) {
        let mut last_call = 0;
        loop {
            last_call = self.wait_for_call(last_call);
            let workers = (last_call & ((1 << WORKER_BITS) - 1)) as usize;
            if index >= workers {
                continue;
            }
            let job = lock(&self.job).clone();
            if let Some(job) = job {
                job.run_worker();
            }
        }
    }

    /// Waits until the call is not `seen` any more, and gives it.
    fn wait_for_call(&self, last_call: u64) -> u64 {
        let start = Instant::now();
        for round in 0.. {
            for _ in 0..64 {
                let call = self.call.load(Ordering::SeqCst);
                if call != last_call {
                    return call;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN_TIME {
                break;
            }
            if round >= SPINS_BEFORE_YIELD {
                thread::yield_now();
            }
        }
        loop {
            // A caller wakes after it has set the call: then parking returns at once.
            thread::park();
            let call = self.call.load(Ordering::SeqCst);
            if call != last_call {
                return call;
            }
        }
    }

    /// Tells `helpers` threads of `job`; hires those that are missing, as far as the system gives them.
    fn dispatch(&'static self, job: &Arc<Job>, workers: usize) {
        let mut threads = lock(&self.threads);
        while threads.len() < workers {
            let index = threads.len();
            let name = format!("kernels-{index}");
            let body = move || self.worker_loop(index);
            match thread::Builder::new().name(name).spawn(body) {
                Ok(handle) => threads.push(handle.thread().clone()),
                Err(_) => break, // Fewer will do: the caller takes what nobody else does.
            }
        }
        *lock(&self.job) = Some(Arc::clone(job));
        let generation = (self.call.load(Ordering::SeqCst) >> WORKER_BITS) + 1;
        let call = generation << WORKER_BITS | workers as u64;
        self.call.store(call, Ordering::SeqCst);
        for thread in threads.iter().take(workers) {
            thread.unpark();
        }
    }
}

/// Lets the crew go when a call ends, after a panic too.
struct ReleaseGuard;

impl Drop for ReleaseGuard {
    fn drop(&mut self) {
        *lock(&POOL.job) = None;
        POOL.busy.store(false, Ordering::Release);
    }
}

/// Runs `unit(i)` once for each `i` below `count`, on the calling thread and the crew: as many threads
/// together as the current rayon pool has. While another call has the crew, the calling thread works
/// alone, and asks again after each unit.
pub(crate) fn run(count: usize, task: &(dyn Fn(usize) + Sync)) {
    let threads = rayon::current_num_threads().min(1 << (WORKER_BITS - 1));
    for done in 0..count {
        let workers = (threads - 1).min(count - done - 1);
        if workers > 0 && !POOL.busy.swap(true, Ordering::Acquire) {
            return run_parallel(count - done, workers, &|i| task(done + i));
        }
        task(done);
    }
}

/// [`run`], once the crew is this call's.
fn run_parallel(count: usize, workers: usize, task: &(dyn Fn(usize) + Sync)) {
    let release_guard = ReleaseGuard;
    #[expect(
        clippy::transmute_ptr_to_ptr,
        reason = "a cast may not lengthen the lifetime inside `dyn`"
    )]
    // SAFETY: only the lifetime changes, and `Close` keeps this call from ending while anyone may
    // still follow the pointer.
    let task = unsafe {
        std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(
            task,
        )
    };
    let job = Arc::new(Job {
        task,
        count,
        next: AtomicUsize::new(0),
        active: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        panic: Mutex::new(None),
    });
    POOL.dispatch(&job, workers);
    let join_guard = JoinGuard(&job);
    job.run_tasks();
    drop(join_guard);
    drop(release_guard);
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
    fn each_task_runs_once_from_any_caller() {
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
    fn call_wakes_parked_workers() {
        for _ in 0..20 {
            std::thread::sleep(2 * super::SPIN_TIME);
            let runs = AtomicU32::new(0);
            run(50, &|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 50);
        }
    }

    #[test]
    fn task_panic_reaches_the_caller_and_pool_survives() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let pool = pool.unwrap();
        for bad in 0..40 {
            let call = || {
                run(40, &|i| {
                    std::thread::yield_now();
                    assert_ne!(i, bad, "injected panic");
                });
            };
            let caught = catch_unwind(AssertUnwindSafe(|| pool.install(call)));
            assert!(caught.is_err(), "task {bad}");
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
    fn nested_calls_complete() {
        let total = AtomicU32::new(0);
        run(8, &|_| {
            run(8, &|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 64);
    }
}
