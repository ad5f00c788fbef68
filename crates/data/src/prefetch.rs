//! Batches made in advance by a thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::batch::TokenBatch;
use crate::error::DataError;
use crate::loader::Loader;

/// The endless stream of a loader's batches; see [`Loader::prefetch`]. It ends after an error;
/// a panic while a batch is made is one ([`DataError::Batches`]).
#[derive(Debug)]
pub struct Prefetch {
    receiver: Option<Receiver<Result<TokenBatch, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

/// More batches are not made in advance: a channel takes memory for all of them at once.
const MAX_DEPTH: usize = 64;

impl Prefetch {
    pub(crate) fn start(loader: Loader, from_step: u64, depth: usize) -> Self {
        let accumulation = loader.config().accumulation;
        let batch = move |step, micro| loader.batch(step, micro);
        Self::spawn(accumulation, from_step, depth, batch)
    }

    /// The batches that `batch` makes of (step, micro-batch).
    fn spawn(
        accumulation: usize,
        from_step: u64,
        depth: usize,
        batch: impl Fn(u64, usize) -> Result<TokenBatch, DataError> + Send + 'static,
    ) -> Self {
        let (sender, receiver) = sync_channel(depth.clamp(1, MAX_DEPTH));
        let work = move || {
            for step in from_step.. {
                for micro in 0..accumulation {
                    let made = catch_unwind(AssertUnwindSafe(|| batch(step, micro)))
                        .unwrap_or_else(|panic| Err(failure(&*panic)));
                    let failed = made.is_err();
                    // A closed channel means that nobody wants more.
                    if sender.send(made).is_err() || failed {
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

/// A panic as an error, with what it said.
fn failure(panic: &(dyn Any + Send)) -> DataError {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    DataError::Batches {
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
            // The thread has no more to say: a panic in it was already given out as an error.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_while_a_batch_is_made_is_the_last_item_and_has_its_message() {
        let mut batches = Prefetch::spawn(2, 5, 3, |step, micro| {
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
    fn a_huge_depth_takes_no_memory() {
        let made = |_, _| Ok(TokenBatch::default());
        let mut batches = Prefetch::spawn(1, 0, usize::MAX, made);
        assert!(batches.next().unwrap().is_ok());
    }
}
