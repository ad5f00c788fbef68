//! Every number of a model, from word to next word.
//!
//! | to read | open |
//! |---|---|
//! | what follows from what | [`graph`](graph::graph), [`Node`] |
//! | the model's numbers for a prompt and its answer | [`Trace`] |
//! | the same from plain loops in f64 | [`evaluate`](evaluate::evaluate), [`Verdict`] |
//! | where one number comes from | [`derive`](derive::derive), [`Address`] |

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod address;
mod array;
pub mod derive;
mod error;
pub mod evaluate;
mod formula;
pub mod graph;
mod recorder;
mod trace;
mod verdict;
mod words;

pub use address::{Address, TOKENS};
pub use array::Array;
pub use derive::{Derivation, Operand};
pub use error::ExplainError;
pub use formula::number;
pub use graph::{Axis, Node, Op};
pub use trace::{MOST_NUMBERS, Trace, TraceOptions, count_numbers};
pub use verdict::{Difference, Verdict};
pub use words::{About, about};
