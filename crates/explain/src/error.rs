//! What can go wrong in this crate, as sentences with the facts in them.

/// Every error of the explain crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The prompt cannot be read, or the model cannot go on.
    #[error(transparent)]
    Generate(#[from] nextword_generate::GenerateError),

    /// A file cannot be written or read.
    #[error(transparent)]
    Model(#[from] nextword_model::ModelError),

    /// An address that names no number of this trace.
    #[error("`{address}` names no number here: {problem}; hint: {hint}")]
    Address {
        /// What was asked for.
        address: String,
        /// What is wrong with it.
        problem: String,
        /// An address that would do.
        hint: String,
    },

    /// More numbers than can be looked at.
    #[error("{what} is more than can be shown: {count}, and the limit is {limit}; hint: {hint}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How much it is.
        count: usize,
        /// How much may be.
        limit: usize,
        /// What to ask instead.
        hint: &'static str,
    },

    /// A change that cannot be made.
    #[error("this cannot be changed: {0}")]
    WhatIf(String),
}
