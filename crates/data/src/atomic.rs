//! Atomic file replacement: a file is either complete or absent.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::DataError;

/// Returns the folder that contains `path`.
pub(crate) fn parent_folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

const PREFIX: &str = ".writing-";
const SUFFIX: &str = ".tmp";

/// Whether `name` is a temporary file name of [`create_temporary`].
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes())
}

/// Creates a temporary file next to `path`, to be renamed by [`PendingFile::commit`].
pub(crate) fn create_temporary(path: &Path) -> Result<NamedTempFile, DataError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    // Temporary files are private by default; this one becomes a regular user file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(parent_folder(path))
        .map_err(|error| DataError::write(path, error))
}

/// A complete file under its temporary name. It is deleted on drop unless committed.
#[derive(Debug)]
pub(crate) struct PendingFile {
    temporary: TempPath,
    path: PathBuf,
}

impl PendingFile {
    /// Syncs `file` to disk, so that only the rename to `path` remains.
    pub(crate) fn new(file: &File, temporary: TempPath, path: PathBuf) -> Result<Self, DataError> {
        file.sync_all()
            .map_err(|error| DataError::write(&path, error))?;
        Ok(Self { temporary, path })
    }

    /// Writes `contents` to a temporary file.
    pub(crate) fn write(path: PathBuf, contents: &[u8]) -> Result<Self, DataError> {
        let mut temporary = create_temporary(&path)?;
        temporary
            .write_all(contents)
            .map_err(|error| DataError::write(&path, error))?;
        let (file, temporary) = temporary.into_parts();
        Self::new(&file, temporary, path)
    }

    /// Renames the file to its final path, replacing an existing file.
    pub(crate) fn commit(self) -> Result<(), DataError> {
        self.temporary
            .persist(&self.path)
            .map_err(|error| DataError::write(&self.path, error.error))?;
        sync_parent_folder(&self.path)
    }
}

/// Syncs the folder of `path`, so that renames and removals in it are durable. Only Unix allows
/// opening a folder for this.
pub(crate) fn sync_parent_folder(path: &Path) -> Result<(), DataError> {
    #[cfg(unix)]
    File::open(parent_folder(path))
        .and_then(|folder| folder.sync_all())
        .map_err(|error| DataError::write(path, error))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
