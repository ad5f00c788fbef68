//! What can go wrong in this crate, as sentences with the facts in them.

use std::path::PathBuf;

/// Every error of the model crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration that describes no model. `key` is the offending field of
    /// [`ModelConfig`](crate::ModelConfig).
    #[error("model.{key}: {problem}; hint: {hint}")]
    Config {
        /// The field at fault.
        key: &'static str,
        /// What is wrong, with the numbers.
        problem: String,
        /// What would mend it.
        hint: String,
    },

    /// Weights that do not fit the configuration: every difference in one message.
    #[error("{path}: the weights do not fit the model's config:\n{}", .problems.join("\n"))]
    Mismatch {
        /// The weights' file.
        path: PathBuf,
        /// One line for each missing, unused or misshapen tensor.
        problems: Vec<String>,
    },

    /// A weights or record file that cannot be understood.
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
        /// `read`, `write` or the like.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A device that is not there or does not work.
    #[error("device `{name}` cannot be used: {problem}; hint: {hint}")]
    Device {
        /// The name that was asked for.
        name: String,
        /// Why not, and what was found instead.
        problem: String,
        /// What would mend it.
        hint: String,
    },
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
}
