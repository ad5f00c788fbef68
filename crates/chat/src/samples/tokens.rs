//! Encodes examples.

use std::sync::Arc;

use nextword_data::{Encoding, Tokenizer};

use super::growing::{GrowingIds, encode_part};
use super::{SampleText, SpanMethod, TokenSample, TrainOn};
use crate::special_texts::Rendered;
use crate::{
    ChatError, ChatTemplate, Conversation, Example, Json, Message, PromptEncoder, RenderOptions,
    Role,
};

/// Where a prompt template has the prompt.
const PROMPT_PLACEHOLDER: &str = "{prompt}";

/// The special tokens around a sample, from the model card.
///
/// ```
/// use nextword_chat::SampleTokens;
///
/// let tokens = SampleTokens { eos: vec![256], ..SampleTokens::default() };
/// assert!(tokens.prefix.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleTokens {
    /// Ids before every text that no chat template formats.
    pub prefix: Vec<u32>,
    /// The id that an empty prompt starts from.
    pub start: u32,
    /// Ids that end a completion. The first ends texts and completions that no chat template formats.
    pub eos: Vec<u32>,
}

/// Turns examples into token ids with the ids that are trained.
///
/// The ids before each trained message are exactly those that the server sends to the model for the messages before it.
/// The last trained id of a message is an EOS token, so that the model learns to stop.
///
/// ```
/// use nextword_chat::{
///     BuiltinTemplate, ChatTemplate, Conversation, Example, Message, RenderOptions, SampleEncoder, SampleTokens,
/// };
/// use nextword_data::TokenizerConfig;
///
/// let tokenizer = TokenizerConfig::bytes().build("")?; // One token per byte, and <EOS> with id 256.
/// let template = ChatTemplate::from_source(&BuiltinTemplate::Plain.source(false), "", "<EOS>")?;
/// let tokens = SampleTokens { eos: vec![256], ..SampleTokens::default() };
/// let encoder = SampleEncoder::new(tokenizer, tokens).with_chat_template(template);
///
/// let messages = vec![Message::user("Hi"), Message::assistant("Yes?")];
/// let prompt = encoder.prompt_ids(&messages[..1], &RenderOptions::default())?;
/// let samples = encoder.encode(&Example::Conversation(Conversation::new(messages)))?;
/// let (sample, trained) = (&samples[0], samples[0].trained[0].clone());
/// assert_eq!(sample.ids[..trained.start], prompt); // "### User:\nHi\n\n### Assistant:\n"
/// assert_eq!(sample.ids[trained], [89, 101, 115, 63, 256]); // "Yes?" and <EOS>
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SampleEncoder {
    pub(super) tokenizer: Arc<dyn Tokenizer>,
    pub(super) tokens: SampleTokens,
    /// The EOS tokens with their texts.
    pub(super) eos: Vec<(String, u32)>,
    pub(super) prompts: Option<PromptEncoder>,
    prompt_template: Option<String>,
    pub(super) train_on: TrainOn,
    pub(super) variables: Vec<(String, Json)>,
}

impl SampleEncoder {
    /// An encoder for a model without a chat template: for texts, and for prompts with completions.
    pub fn new(tokenizer: Arc<dyn Tokenizer>, tokens: SampleTokens) -> Self {
        let text = |id: &u32| Some((tokenizer.id_to_token(*id)?, *id));
        let eos = tokens.eos.iter().filter_map(text);
        let eos = eos.filter(|(text, _)| !text.is_empty()).collect();
        Self {
            eos,
            tokenizer,
            tokens,
            prompts: None,
            prompt_template: None,
            train_on: TrainOn::default(),
            variables: Vec::new(),
        }
    }

    /// Formats conversations with `template`, as the server does.
    #[must_use]
    pub fn with_chat_template(self, template: ChatTemplate) -> Self {
        let prompts = PromptEncoder::new(template, self.tokenizer.clone(), self.tokens.start);
        Self {
            prompts: Some(prompts),
            ..self
        }
    }

    /// Without a chat template, formats the prompt of a completion with `template`, in which `{prompt}` is replaced.
    #[must_use]
    pub fn with_prompt_template(self, template: impl Into<String>) -> Self {
        let prompt_template = Some(template.into());
        Self {
            prompt_template,
            ..self
        }
    }

    /// Sets which parts of conversations are trained.
    #[must_use]
    pub fn with_train_on(self, train_on: TrainOn) -> Self {
        Self { train_on, ..self }
    }

    /// Sets further variables of the chat template, such as `enable_thinking`.
    #[must_use]
    pub fn with_variables(self, variables: Vec<(String, Json)>) -> Self {
        Self { variables, ..self }
    }

    /// The encoder of prompts, if there is a chat template.
    pub fn prompts(&self) -> Option<&PromptEncoder> {
        self.prompts.as_ref()
    }

    /// The ids that end a completion.
    pub fn eos_ids(&self) -> &[u32] {
        &self.tokens.eos
    }

    /// The ids that the server sends to the model for `messages`.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`], and those of [`PromptEncoder::encode`].
    pub fn prompt_ids(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<Vec<u32>, ChatError> {
        match (&self.prompts, messages) {
            (Some(prompts), _) => Ok(prompts.encode(messages, options)?.encoding.ids),
            (None, [message]) if self.formats_prompt(message) => {
                let text = self.formatted_prompt(&message.text());
                Ok(self.encode_text(&text)?.ids)
            }
            (None, _) => Err(ChatError::NoTemplate),
        }
    }

    /// The samples of an example: one, or one per trained message (see [`SpanMethod::PerTurn`]), or none if nothing of
    /// it is trained.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`] for a conversation without a chat template; [`ChatError::NotClosed`] or
    /// [`ChatError::NoEos`] if the trained part does not end with an EOS token; [`ChatError::NotContinued`];
    /// [`ChatError::Comparison`]; errors of the template and of the tokenizer.
    pub fn encode(&self, example: &Example) -> Result<Vec<TokenSample>, ChatError> {
        match self.kind(example)? {
            Kind::Conversation(prompts, conversation) => {
                let samples = self.conversation(prompts, &conversation)?;
                Ok(samples.into_iter().map(|(_, sample)| sample).collect())
            }
            Kind::Completion(prompt, completion) => {
                Ok(vec![self.encode_completion(&prompt, completion)?])
            }
            Kind::Text(text) => Ok(vec![self.encode_whole(text)?]),
        }
    }

    /// The samples as texts, in the order of [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn texts(&self, example: &Example) -> Result<Vec<SampleText>, ChatError> {
        match self.kind(example)? {
            Kind::Conversation(prompts, conversation) => {
                let samples = self.conversation(prompts, &conversation)?;
                Ok(samples.into_iter().map(|(text, _)| text).collect())
            }
            Kind::Completion(prompt, completion) => {
                let start = prompt.len();
                let text = prompt + completion + self.eos_text()?;
                Ok(vec![SampleText {
                    trained: std::iter::once(start..text.len()).collect(),
                    text,
                    method: SpanMethod::Completion,
                }])
            }
            Kind::Text(text) => {
                let text = text.to_owned() + self.eos_text()?;
                Ok(vec![SampleText {
                    trained: std::iter::once(0..text.len()).collect(),
                    text,
                    method: SpanMethod::Whole,
                }])
            }
        }
    }

    /// How an example is encoded.
    fn kind<'a>(&'a self, example: &'a Example) -> Result<Kind<'a>, ChatError> {
        match (example, &self.prompts) {
            (Example::Conversation(conversation), Some(prompts)) => {
                Ok(Kind::Conversation(prompts, conversation.clone()))
            }
            (Example::Conversation(conversation), None) => match &conversation.messages[..] {
                [user, assistant]
                    if self.formats_prompt(user) && conversation.trained == [false, true] =>
                {
                    match assistant.field("content") {
                        Some(Json::String(text)) => {
                            Ok(Kind::Completion(self.formatted_prompt(&user.text()), text))
                        }
                        _ => Err(ChatError::NoTemplate),
                    }
                }
                _ => Err(ChatError::NoTemplate),
            },
            (Example::Completion { prompt, completion }, Some(prompts)) => {
                let messages = vec![Message::user(prompt), Message::assistant(completion)];
                Ok(Kind::Conversation(prompts, Conversation::new(messages)))
            }
            (Example::Completion { prompt, completion }, None) => {
                Ok(Kind::Completion(self.formatted_prompt(prompt), completion))
            }
            (Example::Text(text), _) => Ok(Kind::Text(text)),
            (Example::Preference(_) | Example::Rated(_), _) => Err(ChatError::Comparison),
        }
    }

    /// Whether the prompt template formats a conversation that consists of `message`.
    fn formats_prompt(&self, message: &Message) -> bool {
        self.prompt_template.is_some() && message.role() == Role::User
    }

    fn formatted_prompt(&self, prompt: &str) -> String {
        match &self.prompt_template {
            Some(template) => template.replace(PROMPT_PLACEHOLDER, prompt),
            None => prompt.to_owned(),
        }
    }

    /// Encodes a text that no chat template formats, as the server does.
    fn encode_text(&self, text: &str) -> Result<Encoding, ChatError> {
        let mut encoding = self.tokenizer.try_encode(text)?;
        let prefix = &self.tokens.prefix;
        if !encoding.ids.starts_with(prefix) {
            encoding.ids.splice(0..0, prefix.iter().copied());
        }
        if encoding.ids.is_empty() {
            encoding.ids.push(self.tokens.start);
        }
        Ok(encoding)
    }

    fn encode_completion(&self, prompt: &str, completion: &str) -> Result<TokenSample, ChatError> {
        let mut growing = GrowingIds::default();
        growing.extend_to(self.encode_text(prompt)?);
        let start = growing.ids.len();
        let whole = self.encode_text(&(prompt.to_owned() + completion))?;
        if !growing.extend_to(whole) {
            growing.is_split = !prompt.is_empty();
            let part = Rendered {
                text: completion.to_owned(),
                literals: Vec::new(),
            };
            let encode = |part: &Rendered| Ok(self.tokenizer.try_encode(&part.text)?);
            growing.append(encode_part(&part, encode)?);
        }
        self.close(growing, start, SpanMethod::Completion)
    }

    fn encode_whole(&self, text: &str) -> Result<TokenSample, ChatError> {
        let mut growing = GrowingIds::default();
        growing.extend_to(self.encode_text(text)?);
        let start = self.tokens.prefix.len().max(1);
        self.close(growing, start, SpanMethod::Whole)
    }

    /// A sample that an EOS token ends, trained from the position `start`.
    fn close(
        &self,
        mut growing: GrowingIds,
        start: usize,
        method: SpanMethod,
    ) -> Result<TokenSample, ChatError> {
        let eos = self.tokens.eos.first().ok_or(ChatError::NoEos)?;
        let has_eos = growing.ids.len() > start
            && growing
                .ids
                .last()
                .is_some_and(|last| self.tokens.eos.contains(last));
        if !has_eos {
            growing.ids.push(*eos);
        }
        let end = growing.ids.len();
        Ok(TokenSample {
            ids: growing.ids,
            trained: std::iter::once(start.min(end - 1)..end).collect(),
            prompt_ends: match method {
                SpanMethod::Completion => vec![start],
                _ => Vec::new(),
            },
            turn_ends: vec![end],
            method,
            is_split: growing.is_split,
            unknown: growing.unknown,
        })
    }

    fn eos_text(&self) -> Result<&str, ChatError> {
        let first = self.eos.first().ok_or(ChatError::NoEos)?;
        Ok(&first.0)
    }
}

/// How an example is encoded.
enum Kind<'a> {
    Conversation(&'a PromptEncoder, Conversation),
    /// A formatted prompt, and the completion.
    Completion(String, &'a str),
    Text(&'a str),
}
