//! The errors of this crate.

use std::path::PathBuf;

use nextword_base::PathError;

use crate::Architecture;

/// Every error of the model crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// An invalid configuration. `key` is the offending field of
    /// [`ModelConfig`](crate::ModelConfig).
    #[error("model.{key}: {problem}; hint: {hint}")]
    Config {
        /// The offending field.
        key: &'static str,
        /// What is wrong, with the values.
        problem: String,
        /// How to fix it.
        hint: String,
    },

    /// An invalid setting of an adapter. `key` is the offending field of [`LoraConfig`](crate::LoraConfig).
    #[error("lora.{key}: {problem}; hint: {hint}")]
    Lora {
        /// The offending field.
        key: &'static str,
        /// What is wrong, with the values.
        problem: String,
        /// How to fix it.
        hint: String,
    },

    /// An adapter that does not fit the model, or an operation that is not possible with it.
    #[error("{problem}; hint: {hint}")]
    Adapter {
        /// What is wrong, with the names.
        problem: String,
        /// How to fix it.
        hint: String,
    },

    /// An operation that does not support the model's architecture.
    #[error(
        "cannot {operation}: the model's architecture is \"{architecture}\"; hint: this is possible with models of \
         architecture {supported}"
    )]
    Architecture {
        /// The model's architecture.
        architecture: Architecture,
        /// What was attempted, as in "export to GGUF".
        operation: &'static str,
        /// The architectures that support it.
        supported: String,
    },

    /// Weights that do not match the configuration: every difference in one message.
    #[error("{path}: the weights do not match the model's config:\n{}", .problems.join("\n"))]
    Mismatch {
        /// The weights file.
        path: PathBuf,
        /// One line for each tensor that is missing, unexpected or of the wrong shape.
        problems: Vec<String>,
    },

    /// A file of a model folder with invalid contents.
    #[error("{path}: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A file that cannot be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted: `read`, `write` or the like.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A device that does not exist or does not work.
    #[error("device `{name}` cannot be used: {problem}; hint: {hint}")]
    Device {
        /// The requested name.
        name: String,
        /// What is wrong, and which devices were found.
        problem: String,
        /// How to fix it.
        hint: String,
    },
}

impl From<PathError> for ModelError {
    fn from(error: PathError) -> Self {
        Self::Io {
            path: error.path,
            action: error.action,
            source: error.source,
        }
    }
}

impl ModelError {
    /// A [`ModelError::Config`] about `key`.
    pub(crate) fn config(
        key: &'static str,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Config {
            key,
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// A [`ModelError::Lora`] about `key`.
    pub(crate) fn lora(
        key: &'static str,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Lora {
            key,
            problem: problem.into(),
            hint: hint.into(),
        }
    }

    /// A [`ModelError::Adapter`].
    pub(crate) fn adapter(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Adapter {
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}
