//! Errors of this crate.

use nextword_data::DataError;
use nextword_model::ModelError;

/// Every error of the generate crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// An invalid setting. `key` is a field of
    /// [`SamplingConfig`](crate::SamplingConfig) or [`TextOptions`](crate::TextOptions).
    #[error("{key}: {problem}; hint: {hint}")]
    Setting {
        /// The invalid field.
        key: &'static str,
        /// What is wrong, with the value.
        problem: String,
        /// How to fix it.
        hint: &'static str,
    },

    /// A prompt contains an id outside the model's vocabulary.
    #[error(
        "prompt {row} contains token {id}, but the model has {vocab_size} tokens (0 to {}); hint: encode the prompt with \
         the model's own tokenizer",
        vocab_size - 1
    )]
    UnknownToken {
        /// Index of the prompt.
        row: usize,
        /// The token id.
        id: u32,
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },

    /// A prompt without tokens.
    #[error("prompt {row} is empty; hint: start with the EOS token or a line break")]
    EmptyPrompt {
        /// Index of the prompt.
        row: usize,
    },

    /// A prompt longer than the model's context.
    #[error(
        "the prompt has {tokens} tokens, but the model's context has {context_length}; hint: shorten the prompt"
    )]
    TooLong {
        /// Length of the prompt in tokens.
        tokens: usize,
        /// Length of the model's context in tokens.
        context_length: usize,
    },

    /// An encoder, which has no next token.
    #[error(
        "the model is an encoder, which does not generate text; hint: `nextword fill` predicts masked words, and \
         `nextword embed` computes embeddings"
    )]
    Encoder,
    /// Something that this model cannot do, or not with this text.
    #[error("{problem}; hint: {hint}")]
    Unsupported {
        /// What is not possible.
        problem: String,
        /// What to do instead.
        hint: &'static str,
    },

    /// The model computed NaN or infinity.
    #[error(
        "the logit of token {id} is {value}: the weights are damaged or training diverged; hint: use an earlier \
        checkpoint"
    )]
    NotFinite {
        /// The first token with such a logit.
        id: usize,
        /// The logit.
        value: f32,
    },

    /// Every token is forbidden.
    #[error("every token is forbidden; hint: `logit_bias` must leave at least one token")]
    AllTokensForbidden,

    /// A tokenizer that belongs to another model.
    #[error(
        "{tokenizer} has {tokens} tokens, but {model} has a vocab_size of {vocab_size}, so the tokenizer belongs \
        to another model; hint: restore the tokenizer.json that the model was trained with"
    )]
    WrongTokenizer {
        /// The tokenizer's file or a description.
        tokenizer: String,
        /// Size of the tokenizer's vocabulary.
        tokens: usize,
        /// The model's file or a description.
        model: String,
        /// Size of the model's vocabulary.
        vocab_size: usize,
    },

    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An error of the data crate.
    #[error(transparent)]
    Data(#[from] DataError),
}
