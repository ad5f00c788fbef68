//! Errors of this crate.

use std::path::{Path, PathBuf};

use nextword_data::DataError;
use nextword_model::ModelError;

/// Every error of the convert crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// An invalid folder or file.
    #[error("{path}: {problem}")]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and how to fix it.
        problem: String,
    },

    /// An unsupported field of a foreign `config.json`.
    #[error("{path}: `{field}` is {value}, {problem}")]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// Why it is not supported.
        problem: String,
    },

    /// Tensors that do not match the configuration, all listed in one message.
    #[error("{path}: the tensors do not match config.json:\n{}", join_lines(.problems))]
    Tensors {
        /// The folder.
        path: PathBuf,
        /// One line per missing, unused or misshapen tensor.
        problems: Vec<String>,
    },

    /// Tensors of an adapter that do not fit its settings or the base model, all listed in one message.
    #[error("{path}: the adapter does not fit the base model:\n{}", join_lines(.problems))]
    Adapter {
        /// The file.
        path: PathBuf,
        /// One line per missing, unknown or misshapen tensor.
        problems: Vec<String>,
    },

    /// A model whose architecture the target format cannot express.
    #[error("{format} cannot express this model: {}", .fields.join("; "))]
    Inexpressible {
        /// The format and the closest architecture.
        format: String,
        /// The unsupported fields of the model's config, with their values.
        fields: Vec<String>,
    },

    /// An adapter that the target format cannot express.
    #[error(
        "{format} cannot express this adapter: {problem}; hint: merge it into its base model, and export that"
    )]
    InexpressibleAdapter {
        /// The format.
        format: &'static str,
        /// What it cannot express.
        problem: String,
    },

    /// A tokenizer that GGUF cannot express.
    #[error("GGUF cannot express the model's tokenizer: {problem}")]
    Tokenizer {
        /// Why it cannot be expressed.
        problem: String,
    },

    /// A value out of range for the target type.
    #[error(
        "`{tensor}` contains {value}, but the maximum of {dtype} is {limit}; hint: export with --dtype bf16 or f32"
    )]
    TooLarge {
        /// The tensor's name in the target format.
        tensor: String,
        /// Its first value out of range.
        value: f32,
        /// The target type.
        dtype: &'static str,
        /// The largest value of the type.
        limit: f32,
    },

    /// A file that cannot be read or written.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed: `read` or `write`.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// An error of the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An error of the data crate.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Maximum number of lines shown; the config of another model can cause thousands.
const MAX_LINES: usize = 200;

/// The problems, one a line, up to a maximum.
pub(crate) fn join_lines(problems: &[String]) -> String {
    let text = problems[..problems.len().min(MAX_LINES)].join("\n");
    match problems.len().saturating_sub(MAX_LINES) {
        0 => text,
        more => format!("{text}\n  and {more} more"),
    }
}

/// The first of `items`, and how many more there are.
pub(crate) fn join_some(items: &[String]) -> String {
    const SHOWN: usize = 3;
    let text = items[..items.len().min(SHOWN)].join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

/// The error for a tokenizer that GGUF cannot express, because of `problem`.
pub(crate) fn unsupported_tokenizer<T>(problem: impl Into<String>) -> Result<T, ConvertError> {
    Err(ConvertError::Tokenizer {
        problem: problem.into(),
    })
}

impl ConvertError {
    pub(crate) fn source(path: &Path, problem: impl Into<String>) -> Self {
        Self::Source {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}
