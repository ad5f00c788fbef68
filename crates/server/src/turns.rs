//! Work that takes a while, beside the threads that serve connections: a few at once, some waiting.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::api_error::ApiError;

/// Bounds work of one kind.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: Arc<Semaphore>,
    /// For those under way and those who wait.
    places: Arc<Semaphore>,
}

impl Turns {
    pub(crate) fn new(at_once: usize, waiting: usize) -> Self {
        Self {
            at_once: Arc::new(Semaphore::new(at_once)),
            places: Arc::new(Semaphore::new(at_once + waiting)),
        }
    }

    /// Does `work` when its turn comes. A client that goes away before leaves nothing behind; work
    /// under way cannot be broken off and keeps its turn to its end.
    ///
    /// # Errors
    /// 429 if too many wait, else those of `work`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| ApiError::busy())?;
        let turn = self.at_once.clone().acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _until_the_end = (place, turn);
            work()
        });
        done.await.unwrap_or_else(|_| Err(ApiError::fault()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(test);
    }

    #[test]
    fn too_many_are_turned_away_and_who_leaves_gives_up_a_place() {
        run(async {
            let turns = Turns::new(1, 1);
            let (go, wait) = mpsc::channel::<()>();
            let mut first = Box::pin(turns.run(move || Ok(wait.recv().is_ok())));
            assert_eq!((&mut first).now_or_never(), None);

            let ran = Arc::new(AtomicBool::new(false));
            let raised = ran.clone();
            let mut second = Box::pin(turns.run(move || {
                raised.store(true, Ordering::SeqCst);
                Ok(())
            }));
            assert_eq!((&mut second).now_or_never(), None);
            assert_eq!(turns.run(|| Ok(())).await, Err(ApiError::busy()));

            drop(second);
            let mut third = Box::pin(turns.run(|| Ok(3)));
            assert_eq!((&mut third).now_or_never(), None);
            go.send(()).unwrap();
            assert_eq!(first.await, Ok(true));
            assert_eq!(third.await, Ok(3));
            assert!(!ran.load(Ordering::SeqCst), "nobody waited for it any more");
        });
    }

    #[test]
    fn work_under_way_keeps_its_turn_when_its_client_leaves() {
        run(async {
            let turns = Turns::new(1, 1);
            let (go, wait) = mpsc::channel::<()>();
            let mut first = Box::pin(turns.run(move || Ok(wait.recv().is_ok())));
            assert_eq!((&mut first).now_or_never(), None);
            drop(first);
            let mut second = Box::pin(turns.run(|| Ok(2)));
            assert_eq!((&mut second).now_or_never(), None);
            assert_eq!(turns.run(|| Ok(())).await, Err(ApiError::busy()));
            go.send(()).unwrap();
            assert_eq!(second.await, Ok(2));
        });
    }

    #[test]
    fn a_panic_is_an_error_and_gives_the_turn_back() {
        run(async {
            let turns = Turns::new(1, 0);
            let work = || -> Result<(), ApiError> { std::panic::panic_any("as a test does") };
            assert_eq!(turns.run(work).await, Err(ApiError::fault()));
            assert_eq!(turns.run(|| Ok(1)).await, Ok(1));
        });
    }
}
