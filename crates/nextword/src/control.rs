//! What callbacks return.

use std::ops::ControlFlow;

/// What a callback returns: nothing to continue, or a [`ControlFlow`], which may stop.
pub trait Control {
    /// Converts to a [`ControlFlow`].
    fn into_control_flow(self) -> ControlFlow<()>;
}

impl Control for () {
    fn into_control_flow(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl Control for ControlFlow<()> {
    fn into_control_flow(self) -> ControlFlow<()> {
        self
    }
}
