//! The errors of this crate.

/// Every error of the plot crate.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// A logarithmic axis with a loss that is not positive.
    #[error("cannot plot a loss of {loss} on a logarithmic axis")]
    NotPositive {
        /// The lowest loss.
        loss: f64,
    },
}
