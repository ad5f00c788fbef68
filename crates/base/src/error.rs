//! The error of operations on several paths.

use std::io;
use std::path::{Path, PathBuf};

/// A failed operation on a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}: {source}", path.display())]
pub struct PathError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was attempted: `rename`, `remove` or the like.
    pub action: &'static str,
    /// The operating system's reason.
    pub source: io::Error,
}

impl PathError {
    /// Returns a function that adds the path and the action to an [`io::Error`].
    pub(crate) fn new(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self {
            path,
            action,
            source,
        }
    }
}
