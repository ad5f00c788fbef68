//! What can go wrong in this crate, as sentences with the facts in them.

use nextword_data::DataError;
use nextword_model::ModelError;

/// Every error of the generate crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A setting that makes no sense. `key` is the field of
    /// [`SamplingConfig`](crate::SamplingConfig) or [`TextOptions`](crate::TextOptions).
    #[error("{key}: {problem}; hint: {hint}")]
    Setting {
        /// The field at fault.
        key: &'static str,
        /// What is wrong, with the value.
        problem: String,
        /// What would mend it.
        hint: &'static str,
    },

    /// A prompt holds an id that the model does not have.
    #[error(
        "prompt {row} holds token {id}, but the model has {vocab_size} tokens (0 to {}); hint: encode the prompt with \
         the model's own tokenizer",
        vocab_size - 1
    )]
    UnknownToken {
        /// Number of the prompt, from 0.
        row: usize,
        /// The id.
        id: u32,
        /// Tokens that the model has.
        vocab_size: usize,
    },

    /// A prompt without tokens: there is nothing to continue.
    #[error("prompt {row} holds no token; hint: start with the end-of-text token or a line break")]
    EmptyPrompt {
        /// Number of the prompt, from 0.
        row: usize,
    },

    /// A prompt that does not fit the model's context.
    #[error(
        "the prompt has {tokens} tokens, but the model's context has {context_length}; hint: shorten the prompt"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that the model sees at once.
        context_length: usize,
    },

    /// The model computed something that is no number.
    #[error(
        "the model gave token {id} the logit {value}; hint: its weights are damaged or its training diverged, use an \
         earlier record"
    )]
    NotFinite {
        /// The first such token.
        id: usize,
        /// NaN or infinity.
        value: f32,
    },

    /// No token may be drawn.
    #[error("no token is left to choose from; hint: `logit_bias` forbids all of them")]
    NothingLeft,

    /// A record whose tokenizer is not the model's.
    #[error(
        "{tokenizer} has {tokens} tokens, but {model} has a vocab_size of {vocab_size}: the tokenizer belongs to \
         another model; hint: put back the tokenizer.json that the model was trained with"
    )]
    WrongTokenizer {
        /// The tokenizer's file, or words for it.
        tokenizer: String,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// The model's file, or words for it.
        model: String,
        /// Tokens of the model.
        vocab_size: usize,
    },

    /// From the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// From the data crate.
    #[error(transparent)]
    Data(#[from] DataError),
}
