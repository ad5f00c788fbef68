//! Batches made in advance by a thread.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::batch::TokenBatch;
use crate::error::DataError;
use crate::loader::Loader;

/// The endless stream of a loader's batches; see [`Loader::prefetch`]. It ends after an error.
#[derive(Debug)]
pub struct Prefetch {
    receiver: Option<Receiver<Result<TokenBatch, DataError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    pub(crate) fn start(loader: Loader, from_step: u64, depth: usize) -> Self {
        let (sender, receiver) = sync_channel(depth.max(1));
        let work = move || {
            let accumulation = loader.config().accumulation;
            for step in from_step.. {
                for micro in 0..accumulation {
                    let batch = loader.batch(step, micro);
                    let failed = batch.is_err();
                    // A closed channel means that nobody wants more.
                    if sender.send(batch).is_err() || failed {
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
            // The thread has no more to say: a panic in it has already ended the iterator.
            let _ = thread.join();
        }
    }
}
