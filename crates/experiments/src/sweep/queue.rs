//! Runs the runs of a sweep on several threads.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nextword_train::StopFlag;

use super::run::{RunResult, RunSpec};
use crate::ExperimentError;

/// Trains one run, in this process or another one.
pub trait Launcher: Sync {
    /// Trains the run of `spec` to its end with `threads` threads; `None` if `stop` was raised before. See
    /// [`execute_run`](crate::execute_run). `progress` receives updates made and their total.
    ///
    /// # Errors
    /// If the run cannot be trained. The sweep continues with the others.
    fn launch(
        &self,
        spec: &RunSpec,
        threads: usize,
        stop: &StopFlag,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<RunResult>, ExperimentError>;
}

/// Observes a sweep, from several threads. All methods do nothing by default.
pub trait SweepObserver: Sync {
    /// A run starts or is resumed.
    fn started(&self, _run: &RunSpec) {}
    /// A run made updates, of `steps` in all.
    fn progressed(&self, _run: &RunSpec, _step: u64, _steps: u64) {}
    /// A run has ended.
    fn ended(&self, _run: &RunSpec, _result: &RunResult) {}
    /// A run could not be trained.
    fn failed(&self, _run: &RunSpec, _error: &ExperimentError) {}
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullObserver;

impl SweepObserver for NullObserver {}

/// A run that has not ended.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) spec: RunSpec,
    /// Whether it needs the GPU, which one run uses at a time.
    pub(super) on_gpu: bool,
}

struct State {
    waiting: VecDeque<Job>,
    gpu_in_use: bool,
    failed: usize,
}

/// The jobs that wait, shared by the threads.
struct Queue {
    state: Mutex<State>,
    gpu_free: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first job that can start now; waits while all others need the GPU that is in use.
    fn next(&self, stop: &StopFlag) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if stop.is_raised() || state.waiting.is_empty() {
                return None;
            }
            let can_start = |job: &Job| !(job.on_gpu && state.gpu_in_use);
            if let Some(at) = state.waiting.iter().position(can_start) {
                let job = state.waiting.remove(at);
                state.gpu_in_use |= job.as_ref().is_some_and(|job| job.on_gpu);
                return job;
            }
            state = self
                .gpu_free
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, has_failed: bool) {
        self.lock().failed += usize::from(has_failed);
    }
}

/// Frees the GPU when its job has ended, also by a panic: the other threads would wait for ever.
struct GpuUse<'a>(Option<&'a Queue>);

impl Drop for GpuUse<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.0 {
            queue.lock().gpu_in_use = false;
            queue.gpu_free.notify_all();
        }
    }
}

/// Trains all `jobs`, up to `parallel` at a time, and returns the number of those that failed.
pub(super) fn run_jobs(
    jobs: Vec<Job>,
    parallel: usize,
    threads: usize,
    launcher: &dyn Launcher,
    observer: &dyn SweepObserver,
    stop: &StopFlag,
) -> usize {
    let queue = Queue {
        state: Mutex::new(State {
            waiting: jobs.into(),
            gpu_in_use: false,
            failed: 0,
        }),
        gpu_free: Condvar::new(),
    };
    let work = || {
        while let Some(job) = queue.next(stop) {
            let gpu = GpuUse(job.on_gpu.then_some(&queue));
            let spec = &job.spec;
            observer.started(spec);
            let mut progress = |step, steps| observer.progressed(spec, step, steps);
            let result = launcher.launch(spec, threads, stop, &mut progress);
            queue.finish(result.is_err());
            drop(gpu);
            match result {
                Ok(Some(result)) => observer.ended(spec, &result),
                Ok(None) => {}
                Err(error) => observer.failed(spec, &error),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..parallel {
            scope.spawn(work);
        }
        work();
    });
    queue.lock().failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_frees_the_gpu() {
        let queue = Queue {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                gpu_in_use: true,
                failed: 0,
            }),
            gpu_free: Condvar::new(),
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _gpu = GpuUse(Some(&queue));
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(ended.is_err() && !queue.lock().gpu_in_use);
    }
}
