//! Errors of this crate.

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

    /// An invalid intervention.
    #[error("invalid edit: {0}")]
    WhatIf(String),
}
