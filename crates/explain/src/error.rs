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
        /// An address that exists.
        hint: String,
    },

    /// More values than the limit.
    #[error("{what} is too large to show: {count} values, and the limit is {limit}; hint: {hint}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its number of values.
        count: usize,
        /// Maximum number of values.
        limit: usize,
        /// How to ask for less.
        hint: &'static str,
    },

    /// An invalid intervention.
    #[error("invalid edit: {0}")]
    WhatIf(String),
}
