//! Errors of this crate.

use nextword_data::DataError;
use nextword_model::{Architecture, ModelError};

/// Every error of the eval crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The data contains an id outside the model's vocabulary.
    #[error(
        "the data contains token {id}, but the model has {vocab_size} tokens (0 to {}); hint: encode the data with the \
         model's own tokenizer",
        vocab_size - 1
    )]
    UnknownToken {
        /// The token id.
        id: u32,
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },

    /// Data without sources for an encoder-decoder model, or with sources for another one.
    #[error(
        "the data {} sources, but the model's architecture is \"{architecture}\"; hint: pairs of source and target \
         belong to an encoder-decoder model",
        if *architecture == Architecture::EncoderDecoder { "has no" } else { "has" }
    )]
    Source {
        /// The architecture of the model.
        architecture: Architecture,
    },

    /// Windows longer than the model's context.
    #[error(
        "the windows of the data have {seq} tokens, but the model's context_length is {context_length}; hint: use \
         windows of at most {context_length} tokens"
    )]
    TooLong {
        /// Length of a window in tokens.
        seq: usize,
        /// Length of the model's context in tokens.
        context_length: usize,
    },

    /// A tokenizer that belongs to another model.
    #[error(
        "the tokenizer has {tokens} tokens, but the model has {vocab_size}, so it belongs to another model; hint: use the \
         tokenizer.json in the model folder"
    )]
    WrongTokenizer {
        /// Size of the tokenizer's vocabulary.
        tokens: usize,
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },

    /// An invalid line of a task.
    #[error(
        "line {line} of the task: {problem}; hint: each line must be {{\"context\": …, \"endings\": […], \"label\": N}} or \
         {{\"text\": …}}"
    )]
    Task {
        /// The line number, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },

    /// A task without a line.
    #[error(
        "the task has no questions and no texts: the file has only empty lines or none; hint: pass a file with \
             one JSON object per line, {{\"context\": …, \"endings\": […], \"label\": N}} or {{\"text\": …}}"
    )]
    EmptyTask,

    /// Too few tokens to predict one.
    #[error("the text has {tokens} token{}, but at least 2 are needed; hint: provide a longer text",
        if *tokens == 1 { "" } else { "s" })]
    TooShort {
        /// Number of tokens in the text.
        tokens: usize,
    },

    /// An error of the data crate.
    #[error(transparent)]
    Data(#[from] DataError),

    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),
}
