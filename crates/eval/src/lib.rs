//! Evaluation of language models: loss, perplexity, bits per byte and multiple-choice accuracy.
//!
//! [`evaluate`] computes the loss over windows of ids, as validation during training does.
//! [`evaluate_text`] evaluates documents and adds bits per byte. [`evaluate_task`] runs tasks with
//! multiple-choice questions and texts.

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
