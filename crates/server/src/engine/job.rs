//! Requests queued for an engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use super::{RequestedModel, Sequence, Update};

/// A message to the engine thread.
pub(super) enum Message {
    Job(Job),
    /// Wakes the thread after it was aborted.
    Stop,
}

/// A request. Its pending sequences count towards the queue length.
pub(super) struct Job {
    pub(super) model: RequestedModel,
    pub(super) pending: VecDeque<(usize, Sequence)>,
    pub(super) updates: mpsc::Sender<Update>,
    /// Capacity of `updates` that one step of all its completions may need.
    pub(super) reserved: usize,
    pub(super) submitted: Instant,
    pub(super) queued: Arc<AtomicUsize>,
}

impl Job {
    /// Removes its next sequence from the queue.
    pub(super) fn next(&mut self) -> Option<(usize, Sequence)> {
        let next = self.pending.pop_front()?;
        self.queued.fetch_sub(1, Ordering::AcqRel);
        Some(next)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.pending.len(), Ordering::AcqRel);
    }
}

/// Clears the flag when the engine thread ends, however it ends.
pub(super) struct AliveGuard(pub(super) Arc<AtomicBool>);

impl Drop for AliveGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
