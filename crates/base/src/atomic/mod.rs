//! Atomic replacement of files and folders: each is either complete or absent, and an earlier one stays
//! until its successor is on disk.
//!
//! A file is written under a temporary name in the same folder, synced, and renamed. Then the folder is
//! synced, which makes the rename durable.

mod file;
mod folder;

use std::fs::File;
use std::io;
use std::path::Path;

pub use file::{AtomicFile, PendingFile, is_temporary, write};
pub use folder::AtomicFolder;

/// Returns the folder that contains `path`.
pub fn parent_folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Syncs the entries of the folder `path`, so that renames and removals in it are durable. Only Unix
/// allows opening a folder for this; elsewhere it does nothing.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}
