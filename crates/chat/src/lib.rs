//! Conversations as prompts: messages, roles and chat templates.
//!
//! A chat model is trained on conversations that its *chat template* turns into text. Whoever talks to the
//! model has to format conversations in exactly the same way, so the server, the terminal and training
//! share this crate. It has neither tensors nor HTTP.
//!
//! | for | see |
//! |---|---|
//! | one message of a conversation | [`Message`], [`Role`], [`Json`] |
//! | formatting a conversation | [`ChatTemplate`], [`RenderOptions`] |
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
mod compiled;
mod cycler;
mod error;
mod filters;
mod functions;
mod json;
mod message;
mod methods;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod reference_tests;
mod repr;
mod source;
mod template;
mod tojson;
mod wrap;

pub use error::ChatError;
pub use json::Json;
pub use message::{Message, Role};
pub use template::{ChatTemplate, RenderOptions};
