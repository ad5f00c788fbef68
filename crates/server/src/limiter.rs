//! Runs blocking work off the connection threads, with limits on concurrency and on the queue.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::api_error::ApiError;
use crate::panics;

/// Limits how many tasks of one kind run and wait.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimit {
    running: Arc<Semaphore>,
    /// One permit for each task that runs or waits.
    admitted: Arc<Semaphore>,
}

impl ConcurrencyLimit {
    pub(crate) fn new(max_running: usize, max_waiting: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(max_running)),
            admitted: Arc::new(Semaphore::new(max_running + max_waiting)),
        }
    }

    /// Runs `work` on a blocking thread once a permit is free. Dropping the future before then frees
    /// its place in the queue; work that has started cannot be cancelled and holds its permit until it
    /// ends.
    ///
    /// # Errors
    /// 429 if the queue is full, 500 if `work` panics, otherwise the errors of `work`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let admitted = self.admitted.clone().try_acquire_owned();
        let admitted = admitted.map_err(|_| ApiError::queue_full())?;
        let running = self.running.clone().acquire_owned().await;
        let task = tokio::task::spawn_blocking(move || {
            let _permits = (admitted, running);
            panics::catch("a blocking task of a request", work)
        });
        let result = task.await.ok().flatten(); // `None` if `work` panicked.
        result.unwrap_or_else(|| Err(ApiError::panicked()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;
    use crate::panics::test_log;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(test);
    }

    #[test]
    fn full_queue_rejects_and_dropped_waiter_frees_its_place() {
        run(async {
            let limit = ConcurrencyLimit::new(1, 1);
            let (go, wait) = mpsc::channel::<()>();
            let mut first = Box::pin(limit.run(move || Ok(wait.recv().is_ok())));
            assert_eq!((&mut first).now_or_never(), None);

            let ran = Arc::new(AtomicBool::new(false));
            let flag = ran.clone();
            let mut second = Box::pin(limit.run(move || {
                flag.store(true, Ordering::SeqCst);
                Ok(())
            }));
            assert_eq!((&mut second).now_or_never(), None);
            assert_eq!(limit.run(|| Ok(())).await, Err(ApiError::queue_full()));

            drop(second);
            let mut third = Box::pin(limit.run(|| Ok(3)));
            assert_eq!((&mut third).now_or_never(), None);
            go.send(()).unwrap();
            assert_eq!(first.await, Ok(true));
            assert_eq!(third.await, Ok(3));
            assert!(!ran.load(Ordering::SeqCst), "dropped work must not run");
        });
    }

    #[test]
    fn started_work_holds_its_permit_after_client_leaves() {
        run(async {
            let limit = ConcurrencyLimit::new(1, 1);
            let (go, wait) = mpsc::channel::<()>();
            let mut first = Box::pin(limit.run(move || Ok(wait.recv().is_ok())));
            assert_eq!((&mut first).now_or_never(), None);
            drop(first);
            let mut second = Box::pin(limit.run(|| Ok(2)));
            assert_eq!((&mut second).now_or_never(), None);
            assert_eq!(limit.run(|| Ok(())).await, Err(ApiError::queue_full()));
            go.send(()).unwrap();
            assert_eq!(second.await, Ok(2));
        });
    }

    #[test]
    fn panic_is_logged_as_error_and_frees_the_permit() {
        run(async {
            test_log::init();
            let limit = ConcurrencyLimit::new(1, 0);
            let work = || -> Result<(), ApiError> { panic!("in blocking work") };
            assert_eq!(limit.run(work).await, Err(ApiError::panicked()));
            assert_eq!(limit.run(|| Ok(1)).await, Ok(1));
            let lines = test_log::lines_with("in blocking work");
            assert!(lines.len() == 1 && lines[0].contains(file!()), "{lines:?}");
        });
    }
}
