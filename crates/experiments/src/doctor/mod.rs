//! Checks of training data and of this machine.

mod data;
mod finding;
mod machine;

pub use data::{DataReport, check_data};
pub use finding::{Finding, FindingKind};
pub use machine::{CheckOutcome, MachineCheck, check_device};
