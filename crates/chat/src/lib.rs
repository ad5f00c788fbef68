//! Conversations as prompts and as training data.
//!
//! A chat model is trained on conversations that its *chat template* turns into text. Whoever talks to the
//! model has to format conversations in exactly the same way, so the server, the terminal and training
//! share this crate. It has neither tensors nor HTTP.
//!
//! | for | see |
//! |---|---|
//! | one message of a conversation | [`Message`], [`Role`], [`Json`] |
//! | formatting a conversation | [`ChatTemplate`], [`RenderOptions`], [`BuiltinTemplate`] |
//! | a conversation as token ids | [`PromptEncoder`] |
//! | reading training data | [`read_records`], [`Example`], [`Conversation`] |
//! | training data as token ids, with those that are trained | [`SampleEncoder`], [`TrainOn`] |
//!
//! ```
//! use nextword_chat::{ChatTemplate, Message};
//!
//! let source = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}\n\
//!               {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
//! let template = ChatTemplate::from_source(source, "<s>", "</s>")?;
//! let prompt = template.render(&[Message::system("Be brief."), Message::user("Who are you?")])?;
//! assert_eq!(prompt, "<|system|>Be brief.</s>\n<|user|>Who are you?</s>\n<|assistant|>");
//! # Ok::<(), nextword_chat::ChatError>(())
//! ```
//!
//! Templates come with downloaded models and are untrusted programs: [minijinja] runs them without access
//! to files, with limits on instructions and on output.
//!
//! [minijinja]: https://docs.rs/minijinja

mod arguments;
mod builtin;
mod compiled;
mod content;
mod conversation;
mod cycler;
mod error;
mod filters;
mod functions;
mod json;
mod message;
mod methods;
mod prompt;
mod record_source;
mod records;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod reference_tests;
mod repr;
mod samples;
mod source;
mod special_texts;
mod template;
mod tojson;
mod tool_calls;
mod wrap;

pub use builtin::BuiltinTemplate;
pub use conversation::{Conversation, Example, Preference, RatedCompletion};
pub use error::ChatError;
pub use json::Json;
pub use message::{Message, Role};
pub use prompt::{EncodedPrompt, PromptEncoder};
pub use record_source::RecordSource;
pub use records::{DropReason, Dropped, RecordCounts, RecordFormat, SourcedRecord, read_records};
pub use samples::{SampleEncoder, SampleText, SampleTokens, SpanMethod, TokenSample, TrainOn};
pub use template::{ChatTemplate, RenderOptions};
