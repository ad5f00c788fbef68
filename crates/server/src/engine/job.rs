//! What waits for an engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Sequence, Update};

/// A request on its way to the thread. Its sequences count as waiting while they are in it.
pub(super) struct Job {
    pub(super) waiting: VecDeque<(usize, Sequence)>,
    pub(super) updates: mpsc::Sender<Update>,
    /// Room in `updates` that all its answers need in a step.
    pub(super) room: usize,
    pub(super) since: Instant,
    pub(super) queued: Arc<AtomicUsize>,
}

impl Job {
    /// The next of its sequences, which no longer waits then.
    pub(super) fn next(&mut self) -> Option<(usize, Sequence)> {
        let next = self.waiting.pop_front()?;
        self.queued.fetch_sub(1, Ordering::AcqRel);
        Some(next)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.waiting.len(), Ordering::AcqRel);
    }
}

/// Falls with the thread, however that ends.
pub(super) struct Alive(pub(super) Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
