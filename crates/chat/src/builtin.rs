//! Chat templates for models that have none.

use std::str::FromStr;

/// A chat template by its name, for a model without one of its own.
///
/// ```
/// use nextword_chat::{BuiltinTemplate, ChatTemplate, Message};
///
/// let plain: BuiltinTemplate = "plain".parse().map_err(|()| "unknown")?;
/// let template = ChatTemplate::from_source(&plain.source(false), "", "<EOS>")?;
/// let messages = [Message::user("Hi"), Message::assistant("Hello!"), Message::user("Bye")];
/// assert_eq!(
///     template.render(&messages)?,
///     "### User:\nHi\n\n### Assistant:\nHello!<EOS>\n\n### User:\nBye\n\n### Assistant:\n"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BuiltinTemplate {
    /// `ChatML`: `<|im_start|>ROLE`, the content, `<|im_end|>`. For tokenizers that have these two tokens.
    ChatMl,
    /// `### User:` and `### Assistant:` before the contents, and the EOS token after each of the assistant's. It needs
    /// no tokens of its own.
    Plain,
}

impl BuiltinTemplate {
    /// All templates.
    pub const ALL: [Self; 2] = [Self::ChatMl, Self::Plain];

    /// The name in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ChatMl => "chatml",
            Self::Plain => "plain",
        }
    }

    /// The source of the template. `begins_with_bos`: whether it writes the BOS token at the start, for a model whose
    /// tokenizer puts that token before every text.
    pub fn source(self, begins_with_bos: bool) -> String {
        let bos = if begins_with_bos {
            "{{ bos_token }}"
        } else {
            ""
        };
        let source = match self {
            Self::ChatMl => {
                "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + \
                 '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% \
                 endif %}"
            }
            Self::Plain => {
                "{% for message in messages %}{{ '### ' + message.role | capitalize + ':\\n' + (message.content or '') \
                 }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last or \
                 add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### \
                 Assistant:\\n' }}{% endif %}"
            }
        };
        bos.to_owned() + source
    }
}

impl FromStr for BuiltinTemplate {
    type Err = ();

    /// Finds a template by its exact name.
    fn from_str(name: &str) -> Result<Self, ()> {
        let found = Self::ALL
            .into_iter()
            .find(|template| template.as_str() == name);
        found.ok_or(())
    }
}
