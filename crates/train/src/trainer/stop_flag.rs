//! Requests to stop a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::TrainError;

/// Requests that a run saves and stops after the current update.
///
/// ```
/// let stop = nextword_train::StopFlag::default();
/// let handler = stop.clone(); // For a signal handler, or another thread.
/// handler.raise();
/// assert!(stop.is_raised());
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    raised: AtomicBool,
    has_stepped: AtomicBool,
    has_checkpoint: AtomicBool,
}

impl StopFlag {
    /// Requests a stop.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was requested.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::SeqCst)
    }

    /// Whether the trainer has made an update. Before the first one, for which a GPU's programs are compiled,
    /// there is nothing to save, and the process may end at once.
    pub fn has_stepped(&self) -> bool {
        self.0.has_stepped.load(Ordering::SeqCst)
    }

    /// Whether the run has a checkpoint, from this process or an earlier one.
    pub fn has_checkpoint(&self) -> bool {
        self.0.has_checkpoint.load(Ordering::SeqCst)
    }

    /// Ends an evaluation if a stop was requested.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        if self.is_raised() {
            Err(TrainError::Interrupted)
        } else {
            Ok(())
        }
    }

    pub(super) fn mark_stepped(&self) {
        self.0.has_stepped.store(true, Ordering::SeqCst);
    }

    pub(super) fn mark_checkpoint(&self) {
        self.0.has_checkpoint.store(true, Ordering::SeqCst);
    }
}
