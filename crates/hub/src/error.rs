//! The errors of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// Every error of the hub crate. Each message states the fact and how to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A reference that does not name a model on the Hub.
    #[error(
        "`{reference}` does not name a model on the Hub: {problem}; hint: write hf:OWNER/NAME, \
         hf:OWNER/NAME@REVISION or hf:OWNER/NAME:FILE.gguf"
    )]
    Reference {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        problem: String,
    },

    /// An environment variable, or the file that it names, with an invalid value.
    #[error("{variable} {problem}")]
    Setting {
        /// The name of the variable.
        variable: &'static str,
        /// What is wrong and how to fix it.
        problem: String,
    },

    /// The server cannot be reached, or the connection breaks again and again.
    #[error("{problem}")]
    Network {
        /// What happened and what to do.
        problem: String,
    },

    /// Access to the repository requires a token, or permission.
    #[error("{problem}")]
    Denied {
        /// Why, and how to get access.
        problem: String,
    },

    /// The repository, the revision or the file does not exist, or has no weights that can be imported.
    #[error("{problem}")]
    NotFound {
        /// What is missing and what to do.
        problem: String,
    },

    /// The server's answer is invalid or exceeds a limit.
    #[error("{url}: {problem}")]
    Server {
        /// What was requested.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },

    /// The content of a file is not what the repository says.
    #[error(
        "`{file}` of `{repository}` was downloaded with another {what} than the repository states; it was removed; \
         hint: try again, and if that does not help, report it to the owner of the mirror or proxy in between"
    )]
    WrongContent {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// What differs: the hash with its kind.
        what: &'static str,
    },

    /// The disk of the cache is too small for the files.
    #[error(
        "{} has {} MiB free, but the files need {} MiB more; hint: free some space, or choose a cache on another \
         disk with HF_HUB_CACHE", path.display(), free >> 20, needed.div_ceil(1 << 20)
    )]
    DiskFull {
        /// The cache folder.
        path: PathBuf,
        /// Bytes that are still to be downloaded.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },

    /// A file or folder of the cache that cannot be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted: `read`, `write`, `create` or the like.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl HubError {
    /// Returns a function that adds the path and the action to an [`io::Error`].
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// An invalid answer to a request for `url`.
    pub(crate) fn server(url: &impl ToString, problem: impl Into<String>) -> Self {
        Self::Server {
            url: url.to_string(),
            problem: problem.into(),
        }
    }
}
