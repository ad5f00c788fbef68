//! Encodes examples.

use std::sync::Arc;

use nextword_data::Tokenizer;

use super::{SampleText, TokenSample, TrainOn};
use crate::{ChatError, Example, Message, PromptEncoder, RenderOptions};

/// The special tokens around a sample, from the model card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleTokens {
    /// Ids before every text that no chat template formats.
    pub prefix: Vec<u32>,
    /// The id that an empty prompt starts from.
    pub start: u32,
    /// Ids that end a completion. The first ends texts and completions that no chat template formats.
    pub eos: Vec<u32>,
}

/// Turns examples into token ids: the ids before each trained message are those that the server sends for the
/// messages before it.
#[derive(Debug)]
pub struct SampleEncoder {
    prompts: Option<PromptEncoder>,
    tokenizer: Arc<dyn Tokenizer>,
    tokens: SampleTokens,
    prompt_template: Option<String>,
    train_on: TrainOn,
}

impl SampleEncoder {
    /// The samples of an example: one, or one per trained message (see [`SpanMethod::PerTurn`](super::SpanMethod)),
    /// or none if nothing of it is trained.
    pub fn encode(&self, example: &Example) -> Result<Vec<TokenSample>, ChatError>;

    /// The samples as text.
    pub fn texts(&self, example: &Example) -> Result<Vec<SampleText>, ChatError>;

    /// The ids that the server sends to the model for `messages`.
    pub fn prompt_ids(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<Vec<u32>, ChatError>;
}
