//! Errors of messages and templates.

use std::path::PathBuf;

/// All errors of the chat crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A chat template cannot be read or parsed.
    #[error("`{}`: {problem}; hint: fix the template or remove the file", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// The chat template rejected a conversation, or exceeded its limits.
    #[error("the model's chat template rejected this conversation: {problem}")]
    Rejected {
        /// The error raised by the template.
        problem: String,
    },

    /// A message has an unknown role.
    #[error("unknown role {role:?}; hint: use system, developer, user, assistant or tool")]
    UnknownRole {
        /// The role, at most 40 characters of it.
        role: String,
    },

    /// A message has a missing or invalid field.
    #[error("a message {problem}")]
    Message {
        /// What is wrong.
        problem: String,
    },

    /// A request needs something that the chat template does not have.
    #[error("the model's chat template {problem}")]
    Unsupported {
        /// The field of [`RenderOptions`](crate::RenderOptions) with it: `tools`, `documents` or `variables`.
        option: &'static str,
        /// What is missing.
        problem: String,
    },
}
