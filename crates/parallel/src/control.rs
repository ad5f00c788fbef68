//! What the thread that communicates is told besides its requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// No abort was requested.
const NONE: i32 = -1;

/// A request to end the whole job at once, which a [`Transport`](crate::Transport) looks at while it waits.
///
/// ```
/// let control = nextword_parallel::Control::default();
/// assert_eq!(control.abort_code(), None);
/// control.abort(4);
/// assert_eq!(control.abort_code(), Some(4));
/// ```
#[derive(Clone, Debug)]
pub struct Control(Arc<AtomicI32>);

impl Default for Control {
    fn default() -> Self {
        Self(Arc::new(AtomicI32::new(NONE)))
    }
}

impl Control {
    /// Requests that all ranks end with exit code `code`.
    pub fn abort(&self, code: u8) {
        self.0.store(i32::from(code), Ordering::SeqCst);
    }

    /// The exit code, if an abort was requested.
    pub fn abort_code(&self) -> Option<i32> {
        Some(self.0.load(Ordering::SeqCst)).filter(|code| *code != NONE)
    }
}
