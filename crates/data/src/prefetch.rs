//! Prefetching: a thread prepares batches in advance.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::batch::TokenBatch;
use crate::error::DataError;
use crate::loader::Loader;

/// An endless iterator over a loader's batches; see [`Loader::prefetch`]. It ends after an error. A
/// panic while preparing a batch becomes [`DataError::Prefetch`].
#[derive(Debug)]
pub struct Prefetch {
    receiver: Option<Receiver<Result<TokenBatch, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

/// Maximum prefetch depth: a channel allocates memory for all its entries up front.
const MAX_DEPTH: usize = 64;

impl Prefetch {
    pub(crate) fn start(
        loader: Loader,
        from_step: u64,
        depth: usize,
        micros: Range<usize>,
    ) -> Self {
        let batch = move |step, micro| loader.batch(step, micro);
        Self::spawn(micros, from_step, depth, batch)
    }

    /// Starts a thread that calls `batch` for each (step, micro-batch).
    fn spawn(
        micros: Range<usize>,
        from_step: u64,
        depth: usize,
        batch: impl Fn(u64, usize) -> Result<TokenBatch, DataError> + Send + 'static,
    ) -> Self {
        let (sender, receiver) = sync_channel(depth.clamp(1, MAX_DEPTH));
        let work = move || {
            for step in from_step.. {
                for micro in micros.clone() {
                    let batch_result = catch_unwind(AssertUnwindSafe(|| batch(step, micro)))
                        .unwrap_or_else(|panic| Err(panic_error(&*panic)));
                    let failed = batch_result.is_err();
                    // A closed channel means that the receiver was dropped.
                    if sender.send(batch_result).is_err() || failed {
                        return;
                    }
                }
            }
        };
        Self {
            receiver: Some(receiver),
            thread: Some(std::thread::spawn(work)),
        }
    }
}

/// Converts a panic payload into an error with its message.
fn panic_error(panic: &(dyn Any + Send)) -> DataError {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    DataError::Prefetch {
        message: message.unwrap_or("a panic without a message").to_owned(),
    }
}

impl Iterator for Prefetch {
    type Item = Result<TokenBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.as_ref()?.recv().ok()
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was already returned as an error.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_last_item_and_keeps_its_message() {
        let mut batches = Prefetch::spawn(0..2, 5, 3, |step, micro| {
            assert!((step, micro) != (6, 1), "step {step} broke");
            Ok(TokenBatch::default())
        });
        assert!((0..3).all(|_| batches.next().unwrap().is_ok()));
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert!(
            error.starts_with("preparing batches failed: step 6 broke"),
            "{error}"
        );
        assert!(batches.next().is_none());
    }

    #[test]
    fn a_huge_depth_allocates_no_memory() {
        let batch = |_, _| Ok(TokenBatch::default());
        let mut batches = Prefetch::spawn(0..1, 0, usize::MAX, batch);
        assert!(batches.next().unwrap().is_ok());
    }
}
