//! Every number of a model, from word to next word.
//!
//! | to read | open |
//! |---|---|
//! | what follows from what | [`graph`](graph::graph), [`Node`] |
//! | the model's numbers for a prompt and its answer | [`Trace`] |
//! | the same from plain loops in f64 | [`evaluate`](evaluate::evaluate), [`Verdict`] |
//! | a record that can be asked | [`Explainer`], [`Explanation`] |
//! | everything in one value, for JSON and the page | [`Story`] |
//! | the same for a terminal, and for a browser | [`terminal`], [`page`] |
//! | a sentence over a run's training | [`learning`] |
//! | what if it were otherwise | [`Edit`] |
//! | where one number comes from | [`derive`](derive::derive), [`Address`] |

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod address;
mod array;
pub mod derive;
mod error;
pub mod evaluate;
mod explainer;
mod formula;
pub mod graph;
mod insight;
pub mod learning;
mod node;
pub mod page;
mod recorder;
mod story;
pub mod terminal;
pub mod text;
mod trace;
mod verdict;
mod what_if;
mod words;

/// The JSON schema of [`Story`].
pub const SCHEMA: &str = include_str!("assets/schema.json");

pub use address::{Address, TOKENS};
pub use array::Array;
pub use derive::{Derivation, Operand};
pub use error::ExplainError;
pub use explainer::{Explainer, Explanation};
pub use formula::number;
pub use graph::{Axis, Node, Op};
pub use insight::{Contribution, Guess, Lens, NextWord, Part};
pub use story::{
    CandidateFacts, Chosen, FORMAT, MOST_SHOWN, ModelFacts, Origin, Step, Story, StoryOptions,
    TensorFacts, TokenFacts, VerdictFacts,
};
pub use trace::{MOST_NUMBERS, Trace, TraceOptions, count_numbers};
pub use verdict::{Difference, Tolerance, Verdict};
pub use what_if::{Edit, Moved, WhatIf};
pub use words::{About, about};
