//! Errors of this crate.

use nextword_model::ByteSize;

/// Every error of the explain crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The prompt cannot be encoded, or the model cannot generate.
    #[error(transparent)]
    Generate(#[from] nextword_generate::GenerateError),

    /// A file cannot be written or read.
    #[error(transparent)]
    Model(#[from] nextword_model::ModelError),

    /// An address that does not exist in this trace.
    #[error("`{address}` does not exist here: {problem}; hint: {hint}")]
    Address {
        /// The requested address.
        address: String,
        /// What is wrong with it.
        problem: String,
        /// How to fix it, such as an address that exists.
        hint: String,
    },

    /// More values than the limit.
    #[error(
        "{subject} is too large to show: it has {count} values, but the limit is {limit}; hint: {hint}"
    )]
    TooLarge {
        /// What is too large.
        subject: String,
        /// Its number of values.
        count: usize,
        /// Maximum number of values.
        limit: usize,
        /// How to reduce the number of values.
        hint: &'static str,
    },

    /// Nothing to predict in the text of an encoder.
    #[error(
        "the text has no blank, and this model predicts masked tokens; hint: write ___ in place of each token to predict"
    )]
    NoBlank,

    /// Not enough free memory for a model's values.
    #[error(
        "explaining a model with {parameters} parameters needs {} of memory, but only {} are free; hint: \
         explain a smaller model (`nextword generate` needs only a third of that memory)",
        ByteSize(*.needed), ByteSize(*.available)
    )]
    InsufficientMemory {
        /// Number of parameters.
        parameters: usize,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },

    /// An invalid intervention.
    #[error("invalid edit: {0}")]
    WhatIf(String),
}
