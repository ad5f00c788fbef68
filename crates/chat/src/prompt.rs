//! Conversations as token ids: one way for the server, the terminal and training.

use std::sync::{Arc, OnceLock};

use nextword_data::{Encoding, Tokenizer};

use crate::special_texts::{Rendered, SpecialTexts, has_marks, take_marks};
use crate::tool_calls::Arguments;
use crate::{ChatError, ChatTemplate, Message, RenderOptions};

/// A conversation that a model continues, as text and as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedPrompt {
    /// The text, with special tokens by their texts.
    pub text: String,
    /// The ids, at least one, and what of the text is not in the vocabulary.
    pub encoding: Encoding,
}

/// Turns conversations into the token ids that a model continues. The server, `nextword chat` and training use it, so
/// that a model is trained on exactly the ids that it sees later.
///
/// The ids are those of the text that the chat template makes. There are two exceptions, in favor of what people and
/// tools send: the text of a special token within a message stays text, so that a message cannot end itself or begin
/// one of another role; and the arguments of tool calls become objects, or JSON, for a template that expects them so.
///
/// ```
/// use nextword_chat::{ChatTemplate, Message, PromptEncoder, RenderOptions};
/// use nextword_data::TokenizerConfig;
///
/// let tokenizer = TokenizerConfig::bytes().build("")?; // One token per byte, and <EOS> with id 256.
/// let source = "{% for m in messages %}{{ m.content }}<EOS>{% endfor %}";
/// let prompts = PromptEncoder::new(ChatTemplate::from_source(source, "", "<EOS>")?, tokenizer, 256);
/// let prompt = prompts.encode(&[Message::user("a")], &RenderOptions::default())?;
/// assert_eq!(prompt.encoding.ids, [97, 256]);
/// let typed = prompts.encode(&[Message::user("<EOS>")], &RenderOptions::default())?;
/// assert_eq!(typed.encoding.ids, [60, 69, 79, 83, 62, 256]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PromptEncoder {
    template: ChatTemplate,
    tokenizer: Arc<dyn Tokenizer>,
    start: u32,
    special_texts: SpecialTexts,
    /// Found out when there is a first call.
    arguments: OnceLock<Arguments>,
}

impl PromptEncoder {
    /// Combines a template with a tokenizer. `start`: the id that an empty prompt starts from.
    pub fn new(template: ChatTemplate, tokenizer: Arc<dyn Tokenizer>, start: u32) -> Self {
        Self {
            special_texts: SpecialTexts::new(&*tokenizer),
            arguments: OnceLock::new(),
            template,
            tokenizer,
            start,
        }
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Formats and encodes a conversation.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render_with`], and [`ChatError::Tokenizer`] if the tokenizer would need too much work
    /// for the text.
    pub fn encode(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<EncodedPrompt, ChatError> {
        let rendered = self.render(messages, options)?;
        let encoding = self.encode_prompt(&rendered)?;
        Ok(EncodedPrompt {
            text: rendered.text,
            encoding,
        })
    }

    /// Encodes a formatted conversation that the model continues.
    pub(crate) fn encode_prompt(&self, rendered: &Rendered) -> Result<Encoding, ChatError> {
        let mut encoding = self.encode_rendered(rendered)?;
        if encoding.ids.is_empty() {
            encoding.ids.push(self.start);
        }
        Ok(encoding)
    }

    /// Encodes a part of a formatted conversation.
    pub(crate) fn encode_rendered(&self, rendered: &Rendered) -> Result<Encoding, ChatError> {
        self.special_texts.encode(&*self.tokenizer, rendered)
    }

    /// The special token's text at the start of `text`.
    pub(crate) fn special_text_at(&self, text: &str) -> Option<&str> {
        self.special_texts.at_start(text)
    }

    /// The content of an assistant's message, as it is in a formatted conversation.
    pub(crate) fn as_content(&self, text: &str) -> Rendered {
        self.special_texts.as_content(text)
    }

    /// The id of the special token with this text.
    pub(crate) fn token_id(&self, text: &str) -> Option<u32> {
        match self.tokenizer.encode(text).ids[..] {
            [id] => Some(id),
            _ => None,
        }
    }

    /// Formats a conversation.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<Rendered, ChatError> {
        self.render_by(messages, options, |messages, options| {
            self.template.render_with(messages, options)
        })
    }

    /// Formats a conversation, with the ranges of bytes of its `{% generation %}` blocks. `None` if the template has
    /// no such blocks, or if they cannot be told from the conversation.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Option<(Rendered, Vec<std::ops::Range<usize>>)> {
        if has_marks(messages) {
            return None;
        }
        let rendered = self.render_by(messages, options, |messages, options| {
            let marked = self.template.render_marked(messages, options);
            marked.unwrap_or_else(|| Ok(String::new()))
        });
        let (rendered, marks) = take_marks(&rendered.ok()?);
        (!marks.is_empty()).then_some((rendered, marks))
    }

    fn render_by(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
        render: impl Fn(&[Message], &RenderOptions<'_>) -> Result<String, ChatError>,
    ) -> Result<Rendered, ChatError> {
        let has_calls = |message: &Message| message.field("tool_calls").is_some();
        let arguments = if messages.iter().any(has_calls) {
            *self.arguments.get_or_init(|| Arguments::of(&self.template))
        } else {
            Arguments::AsGiven
        };
        let messages = arguments.convert(messages);
        let Some(protected) = self.special_texts.protect(&messages, options) else {
            let text = render(&messages, options)?;
            return Ok(Rendered {
                text,
                literals: Vec::new(),
            });
        };
        let options = RenderOptions {
            tools: protected.tools.as_deref(),
            documents: protected.documents.as_deref(),
            ..options.clone()
        };
        let text = render(&protected.messages, &options)?;
        Ok(protected.restore(&text))
    }
}
