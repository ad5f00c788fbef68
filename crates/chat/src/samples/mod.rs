//! Examples as token ids, with the ids that are trained.

mod conversations;
mod growing;
mod spans;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests;
mod tokens;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use nextword_data::Encoding;
pub use nextword_data::TrainOn;

pub use self::tokens::{SampleEncoder, SampleTokens};

/// How the trained part of a sample was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SpanMethod {
    /// By the `{% generation %}` marks of the template.
    Marks,
    /// By the prompts before each of the assistant's messages, which the whole conversation begins with.
    Prefixes,
    /// As [`Prefixes`](Self::Prefixes), with a sample of its own for each message of the assistant, since the
    /// conversation does not begin with the prompts: the template formats earlier messages differently.
    PerTurn,
    /// By the end of the prompt, without a chat template.
    Completion,
    /// The whole text is trained.
    Whole,
}

impl SpanMethod {
    /// The method as part of a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Marks => "the template's generation marks",
            Self::Prefixes => "the prompt before each answer",
            Self::PerTurn => "the prompt before each answer, with one sample per answer",
            Self::Completion => "the end of the prompt",
            Self::Whole => "the whole text",
        }
    }
}

/// A formatted example, before it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SampleText {
    /// The text with its special tokens.
    pub text: String,
    /// The trained parts of the text, in bytes and ascending order.
    pub trained: Vec<Range<usize>>,
    /// How they were found.
    pub method: SpanMethod,
}

/// An example as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenSample {
    /// The ids of the whole sample.
    pub ids: Vec<u32>,
    /// Positions of `ids` that are trained: the loss is that of predicting them from the ids before. Ascending,
    /// not empty, without position 0.
    pub trained: Vec<Range<usize>>,
    /// For each of the assistant's trained messages, the number of ids of the prompt before it. A template can mark
    /// trained parts that begin later. Empty without prompts.
    pub prompt_ends: Vec<usize>,
    /// For each of the assistant's trained messages, the number of ids up to and including the token that ends it. A
    /// sample that is too long can be cut at each of them.
    pub turn_ends: Vec<usize>,
    /// How the trained ids were found.
    pub method: SpanMethod,
    /// Whether the text as a whole has other ids: a token of it would reach across the beginning of a trained part.
    /// Generation cannot produce that token, since the prompt ends there.
    pub is_split: bool,
    /// What of the text is not in the vocabulary; its ids are empty.
    pub unknown: Encoding,
}
