//! What can go wrong in this crate, as sentences with the facts in them.

use std::path::{Path, PathBuf};

use nextword_data::DataError;
use nextword_model::ModelError;

/// Every error of the convert crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A folder or a file of it that cannot be understood.
    #[error("{path}: {problem}")]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what would mend it.
        problem: String,
    },

    /// A field of a foreign `config.json` that asks for what nextword does not have.
    #[error("{path}: `{field}` is {value}, {problem}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// Why it cannot be followed.
        problem: String,
    },

    /// Tensors that do not fit the configuration: every difference in one message.
    #[error("{path}: the tensors do not fit its config.json:\n{}", listed(.problems))]
    Tensors {
        /// The folder.
        path: PathBuf,
        /// One line for each missing, unused or misshapen tensor.
        problems: Vec<String>,
    },

    /// A record whose architecture the wanted format cannot express.
    #[error("{format} cannot express this record: {}", .fields.join("; "))]
    Inexpressible {
        /// The format and the architecture that comes nearest.
        format: String,
        /// The fields of the record's config in the way, each with its value.
        fields: Vec<String>,
    },

    /// A tokenizer that the wanted format cannot express.
    #[error("GGUF cannot express the record's tokenizer: {problem}")]
    Tokenizer {
        /// What stands in the way.
        problem: String,
    },

    /// A number that the wanted type cannot hold.
    #[error(
        "`{tensor}` holds {value}, and {dtype} holds {limit} at most; hint: export with --dtype bf16 or f32"
    )]
    TooLarge {
        /// The tensor's name there.
        tensor: String,
        /// Its first number beyond that.
        value: f32,
        /// The type.
        dtype: &'static str,
        /// What it can hold.
        limit: f32,
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

    /// What the model crate says.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// What the data crate says.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Lines of a list that are shown; a config for another model makes thousands.
const SHOWN: usize = 200;

fn listed(problems: &[String]) -> String {
    let text = problems[..problems.len().min(SHOWN)].join("\n");
    match problems.len().saturating_sub(SHOWN) {
        0 => text,
        more => format!("{text}\n  and {more} more"),
    }
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
