//! What can go wrong with text, tokenizers and token files.

use std::path::{Path, PathBuf};

/// Every error of this crate: one sentence with the facts in it.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A setting, or two settings together, make no sense.
    #[error("{message}")]
    Config {
        /// The sentence; it names the setting and the way out.
        message: String,
    },
    /// A file or folder is not there.
    #[error("`{}` does not exist; hint: check the path, it is taken relative to where the command runs", path.display())]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The reason that the system gave.
        source: std::io::Error,
    },
    /// The operating system refused to write.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// What was written.
        path: PathBuf,
        /// The reason that the system gave.
        source: std::io::Error,
    },
    /// A text source has no text.
    #[error("`{}` holds no text", path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file that should be UTF-8 text is something else.
    #[error("`{}` {why}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What was seen instead, and at which byte.
        why: String,
    },
    /// A line of a JSON-lines file cannot be used.
    #[error("`{}`, line {line}: {why}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with the line.
        why: String,
    },
    /// A tokenizer cannot be read, trained or written.
    #[error("tokenizer `{place}`: {why}")]
    Tokenizer {
        /// The file, or the kind of tokenizer that was built.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A token file is damaged or is not one.
    #[error("token file `{}`: {why}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// There are fewer tokens than one window needs.
    #[error(
        "the {split} data has {have} tokens, but a window of context_length = {context_length} needs {}; hint: {}",
        context_length.saturating_add(1),
        fix_short(*have)
    )]
    TooShort {
        /// Which split: "training" or "validation".
        split: &'static str,
        /// Tokens that there are.
        have: usize,
        /// The window that was asked for.
        context_length: usize,
    },
    /// The thread that makes batches in advance stopped by a panic.
    #[error(
        "preparing batches failed: {message}; hint: this is an error of the program, please report it"
    )]
    Batches {
        /// What the panic said.
        message: String,
    },
}

fn fix_short(have: usize) -> String {
    match have {
        0 | 1 => "give more text, no window is shorter than 2 tokens".to_owned(),
        _ => format!(
            "set context_length to {} or less, or give more text",
            have - 1
        ),
    }
}

/// What kind of trouble an error is, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// A setting is wrong: the user changes the config or the command.
    Usage,
    /// A data or tokenizer file is wrong or missing.
    Data,
    /// The disk is full, or a folder cannot be written.
    Storage,
}

impl DataError {
    /// The kind of trouble: wrong setting, bad data, or no place to write.
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

    pub(crate) fn shard(path: &Path, why: impl Into<String>) -> Self {
        Self::Shard {
            path: path.to_path_buf(),
            why: why.into(),
        }
    }

    pub(crate) fn tokenizer(place: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Tokenizer {
            place: place.to_string(),
            why: why.to_string(),
        }
    }
}
