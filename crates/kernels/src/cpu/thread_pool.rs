//! A thread pool with low latency for short calls. The calling thread takes part in the work.
//!
//! A training step is thousands of short calls in sequence. Waking a sleeping thread takes about as
//! long as a small kernel, so workers spin briefly after each call before they sleep. The caller
//! runs tasks itself, the workers join in, and the caller waits only for workers that have started
//! a task. Tasks are taken in order from a counter; results do not depend on which thread runs a
//! task.
//!
//! There is one pool. A call made while the pool is busy (from within a task or from another
//! thread) starts on the calling thread alone.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps.
const SPIN_TIME: Duration = Duration::from_micros(100);

/// Number of polling rounds (a few microseconds) before a spinning worker yields its core between
/// rounds; in a training step the next call usually comes sooner.
const SPINS_BEFORE_YIELD: usize = 6;

/// Number of low bits of [`ThreadPool::call`] that hold the number of workers.
const WORKER_BITS: u32 = 16;

/// The work of one call.
struct Job {
    /// The task function. Its true lifetime is that of the call.
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    /// Number of workers running tasks.
    active: AtomicUsize,
    /// Set when the call ends, so that late workers run no tasks.
    closed: AtomicBool,
    /// Payload of a panic in a worker's task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `task` points to a `Sync` closure, and it is dereferenced only while `run_parallel` keeps
// that closure alive: `JoinGuard` waits for every active worker.
unsafe impl Send for Job {}
// SAFETY: shared access to `task` is sound because the closure is `Sync` and outlives all active
// workers; the other fields are `Sync` themselves.
unsafe impl Sync for Job {}

impl Job {
    fn run_tasks(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            // SAFETY: the closure is alive: the caller does not return from `run_parallel` while a
            // worker is active.
            unsafe { (*self.task)(i) };
        }
    }

    /// Runs tasks on a worker thread.
    ///
    /// The worker increments `active` before it reads `closed`, and the caller sets `closed` before
    /// it reads `active`. With sequential consistency at least one of them observes the other. A
    /// panic is passed to the caller; the worker thread survives.
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

/// Ends a call, also after a panic: waits until no worker can access the job any more.
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

/// The pool and its current job.
struct ThreadPool {
    /// Whether a call is in progress.
    busy: AtomicBool,
    /// Number of the current call and, in the low bits, how many workers it uses: those whose
    /// index is below that number.
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
    // No code that can panic runs while these locks are held, so the data is always valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// Main loop of worker `index`.
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

    /// Waits until the current call differs from `last_call` and returns it.
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
            // The caller unparks after storing the call, so `park` returns at once if it came
            // first.
            thread::park();
            let call = self.call.load(Ordering::SeqCst);
            if call != last_call {
                return call;
            }
        }
    }

    /// Publishes `job` to `workers` threads. Spawns missing threads, as far as the system allows.
    fn dispatch(&'static self, job: &Arc<Job>, workers: usize) {
        let mut threads = lock(&self.threads);
        while threads.len() < workers {
            let index = threads.len();
            let name = format!("kernels-{index}");
            let body = move || self.worker_loop(index);
            match thread::Builder::new().name(name).spawn(body) {
                Ok(handle) => threads.push(handle.thread().clone()),
                Err(_) => break, // Fewer workers suffice: the caller runs the remaining tasks.
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

/// Releases the pool when a call ends, also after a panic.
struct ReleaseGuard;

impl Drop for ReleaseGuard {
    fn drop(&mut self) {
        *lock(&POOL.job) = None;
        POOL.busy.store(false, Ordering::Release);
    }
}

/// Runs `task(i)` once for each `i` below `count` on `threads` threads: the calling thread and
/// workers. While another call holds the pool, the calling thread works alone and tries again after
/// each task.
pub(crate) fn run(threads: usize, count: usize, task: &(dyn Fn(usize) + Sync)) {
    let threads = threads.clamp(1, 1 << (WORKER_BITS - 1));
    for done in 0..count {
        let workers = (threads - 1).min(count - done - 1);
        if workers > 0 && !POOL.busy.swap(true, Ordering::Acquire) {
            return run_parallel(count - done, workers, &|i| task(done + i));
        }
        task(done);
    }
}

/// Implementation of [`run`] after this call has acquired the pool.
fn run_parallel(count: usize, workers: usize, task: &(dyn Fn(usize) + Sync)) {
    let release_guard = ReleaseGuard;
    #[expect(
        clippy::transmute_ptr_to_ptr,
        reason = "a cast may not lengthen the lifetime inside `dyn`"
    )]
    // SAFETY: only the lifetime changes, and `JoinGuard` keeps this call from returning, and so
    // `task` alive, while any worker may still dereference the pointer.
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
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{catch_unwind, run};

    #[test]
    fn each_task_runs_once_from_any_caller() {
        let calls = |threads| {
            for count in (0..3000).map(|i| i % 40) {
                let runs: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                run(threads, count, &|i| {
                    runs[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            }
        };
        std::thread::scope(|scope| {
            for threads in [1, 2, 3, 3] {
                scope.spawn(move || calls(threads));
            }
        });
    }

    #[test]
    fn call_wakes_parked_workers() {
        for _ in 0..20 {
            std::thread::sleep(2 * super::SPIN_TIME);
            let runs = AtomicU32::new(0);
            run(3, 50, &|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 50);
        }
    }

    #[test]
    fn task_panic_reaches_the_caller_and_pool_survives() {
        for bad in 0..40 {
            let call = || {
                run(3, 40, &|i| {
                    std::thread::yield_now();
                    assert_ne!(i, bad, "injected panic");
                });
            };
            assert!(catch_unwind(call).is_err(), "task {bad}");
        }
        let runs = AtomicU32::new(0);
        run(3, 40, &|_| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.into_inner(), 40);
    }

    #[test]
    fn nested_calls_complete() {
        let total = AtomicU32::new(0);
        run(3, 8, &|_| {
            run(3, 8, &|_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 64);
    }
}
