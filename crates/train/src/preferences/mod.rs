//! Losses on preferences: which of two completions is better (DPO, IPO), or whether one is good (KTO).

mod losses;
mod metrics;
mod settings;

pub(crate) use self::losses::{ScoredCompletion, pair_loss, rated_loss};
pub use self::metrics::PreferenceMetrics;
pub(crate) use self::metrics::{PreferenceWarning, Tally};
pub use self::settings::{PreferenceLoss, PreferenceSettings};
