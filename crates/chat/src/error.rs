//! Errors of messages and templates.

use std::path::PathBuf;

use nextword_data::DataError;

use crate::RecordSource;

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
    #[error("the chat template rejected this conversation: {problem}")]
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

    /// A file with training data cannot be read.
    #[error("`{}` {problem}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and how to correct it.
        problem: String,
    },

    /// A record of a file has no known format, or a wrong value.
    #[error("{place}: {problem}")]
    Record {
        /// Where the record is.
        place: RecordSource,
        /// The key, what is wrong with its value, and how to correct it.
        problem: String,
    },

    /// A prompt or a sample cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] DataError),

    /// A conversation is to be formatted for a model without a chat template.
    #[error(
        "this model has no chat template for conversations; hint: set data.chat_template to \"chatml\", \"plain\" or a \
         file"
    )]
    NoTemplate,

    /// The chat template ends the assistant's messages with something else than an EOS token, so that a trained
    /// model would not stop.
    #[error("{}", not_closed(closing, *id, eos))]
    NotClosed {
        /// The special token after the assistant's message, or the end of the text where there is none.
        closing: String,
        /// The id of that token, if it is one.
        id: Option<u32>,
        /// The ids that end a completion.
        eos: Vec<u32>,
    },

    /// No token ends a text or a completion, so that a trained model would not stop.
    #[error(
        "this model has no EOS token, so that it could not learn where a text ends; hint: set data.eos_token to a token of \
         its vocabulary"
    )]
    NoEos,

    /// A conversation does not continue the prompt that the server sends for its first messages.
    #[error(
        "the chat template formats the assistant's message differently than the prompt before it: {prompt:?} is not \
         followed by the message, but there is {conversation:?}; hint: use another data.chat_template"
    )]
    NotContinued {
        /// The end of the prompt.
        prompt: String,
        /// The conversation from where it differs from the prompt.
        conversation: String,
    },

    /// A model that is trained on comparisons is needed for this example.
    #[error(
        "this record compares or rates completions, which supervised training does not use; hint: keep `messages`, or \
         `prompt` and `completion`"
    )]
    Comparison,
}

fn not_closed(closing: &str, id: Option<u32>, eos: &[u32]) -> String {
    let hint = match id {
        None if eos.is_empty() => {
            "train with an EOS token, data.tokenizer.eos = \"<EOS>\", or set data.eos_token to the token that ends a message"
        }
        None if !closing.is_empty() => {
            "use data.chat_template = \"plain\", which works with every vocabulary, or a template whose messages end with a \
             token of this model"
        }
        _ => {
            "set data.eos_token to the token that ends a message, or use another data.chat_template"
        }
    };
    let closing = match (closing.is_empty(), id) {
        (true, _) => "with no token".to_owned(),
        (false, Some(id)) => format!("with {closing:?} (id {id})"),
        (false, None) => format!("with {closing:?}, which is not a token of this model"),
    };
    format!(
        "the chat template ends the assistant's messages {closing}, but a completion ends at the ids {eos:?}; hint: {hint}"
    )
}
