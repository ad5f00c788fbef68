//! How good a model is, in numbers: loss over a whole split, perplexity, bits per byte.
//!
//! [`evaluate`] measures windows of ids, as training does at each validation; [`evaluate_text`]
//! measures documents, and knows how many bytes they have; [`evaluate_task`] asks questions.

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod error;
mod loss;
mod tasks;
mod text;

pub use error::EvalError;
pub use loss::{LossReport, evaluate};
pub use tasks::{TaskReport, evaluate_task};
pub use text::{TextReport, TextSettings, evaluate_text};
