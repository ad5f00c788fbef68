//! What can go wrong in this crate, as sentences with the facts in them.

use nextword_data::DataError;
use nextword_generate::GenerateError;
use nextword_model::ModelError;

/// Every error of the eval crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The data has ids that the model does not.
    #[error(
        "the data holds token {id}, but the model has {vocab_size} tokens (0 to {}); hint: encode the data with the \
         model's own tokenizer",
        vocab_size - 1
    )]
    UnknownToken {
        /// The id.
        id: u32,
        /// Tokens that the model has.
        vocab_size: usize,
    },

    /// Windows that are longer than the model can see.
    #[error(
        "the data comes in windows of {seq} tokens, but the model's context_length is {context_length}; hint: cut \
         windows of {context_length} or less"
    )]
    TooLong {
        /// Tokens of a window.
        seq: usize,
        /// The most tokens that the model sees.
        context_length: usize,
    },

    /// A tokenizer that is not the model's.
    #[error(
        "the tokenizer has {tokens} tokens, but the model has {vocab_size}: it belongs to another model; hint: use the \
         tokenizer.json of the model's record"
    )]
    WrongTokenizer {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Tokens of the model.
        vocab_size: usize,
    },

    /// A line of a task that is none.
    #[error(
        "line {line} of the task: {problem}; hint: each line is {{\"context\": …, \"endings\": […], \"label\": N}} or \
         {{\"text\": …}}"
    )]
    Task {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },

    /// There is nothing to predict.
    #[error("the text has {tokens} tokens, and it takes 2 to predict one; hint: give more text")]
    TooShort {
        /// Tokens that there are.
        tokens: usize,
    },

    /// From the data crate.
    #[error(transparent)]
    Data(#[from] DataError),

    /// From the generate crate.
    #[error(transparent)]
    Generate(#[from] GenerateError),

    /// From the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),
}
