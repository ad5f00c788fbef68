//! Errors of text sources, tokenizers and token files.

use std::path::{Path, PathBuf};

/// The error type of this crate. Each message is one sentence that states the facts.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A setting is invalid, or two settings contradict each other.
    #[error("{message}")]
    Config {
        /// The message; it names the setting and the fix.
        message: String,
    },
    /// A file or folder does not exist.
    #[error("`{}` does not exist; hint: check the path; relative paths start at the current directory", path.display())]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// Reading failed with an I/O error.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The underlying I/O error.
        source: std::io::Error,
    },
    /// Writing failed with an I/O error.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The underlying I/O error.
        source: std::io::Error,
    },
    /// A text source contains no text.
    #[error("`{}` contains no text", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file that should be UTF-8 text is something else.
    #[error("`{}` {reason}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What was found instead, and at which byte.
        reason: String,
    },
    /// A line of a JSON-lines file cannot be used.
    #[error("`{}`, line {line}: {reason}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Line number, counted from 1.
        line: u64,
        /// What is wrong with the line.
        reason: String,
    },
    /// A tokenizer cannot be read, trained or written.
    #[error("tokenizer `{name}`: {reason}")]
    Tokenizer {
        /// The file, or the kind of tokenizer.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A token file is damaged, or the file is not a token file.
    #[error("token file `{}`: {reason}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There are fewer tokens than one window needs.
    #[error("{}", too_short(split, *available, *length))]
    TooShort {
        /// Which split: "training" or "validation".
        split: &'static str,
        /// Number of tokens available.
        available: usize,
        /// The requested window length.
        length: usize,
    },
    /// The prefetch thread panicked.
    #[error(
        "preparing batches failed: {message}; hint: this is a bug in nextword, please report it"
    )]
    Prefetch {
        /// The panic message.
        message: String,
    },
}

fn too_short(split: &str, available: usize, length: usize) -> String {
    let tokens = if available == 1 { "token" } else { "tokens" };
    let found = format!("the {split} data has {available} {tokens}");
    if available < 2 {
        let other_split = match split {
            "validation" => ", or change data.split.validation (0 trains without validation)",
            _ => "",
        };
        return format!(
            "{found}, but at least 2 are needed: one to predict from and one to predict; hint: give more \
             text{other_split}"
        );
    }
    format!(
        "{found}, but a window of {length} tokens needs {}; hint: set train.sequence_length to {} or less, or give \
         more text",
        length.saturating_add(1),
        available - 1
    )
}

/// The class of an error, which determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// A setting is wrong; the fix is in the config or the command line.
    Usage,
    /// A data or tokenizer file is invalid or missing.
    Data,
    /// The disk is full, or a folder is not writable.
    Storage,
}

impl DataError {
    /// Returns the class of this error: usage, data or storage.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Config { .. } | Self::TooShort { .. } => ErrorClass::Usage,
            Self::Write { .. } => ErrorClass::Storage,
            _ => ErrorClass::Data,
        }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Config {
            message: message.into(),
        }
    }

    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        if source.kind() == std::io::ErrorKind::NotFound {
            Self::Missing { path }
        } else {
            Self::Read { path, source }
        }
    }

    pub(crate) fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn shard(path: &Path, reason: impl Into<String>) -> Self {
        Self::Shard {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    pub(crate) fn tokenizer(name: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::Tokenizer {
            name: name.to_string(),
            reason: reason.to_string(),
        }
    }
}
