//! Files that are there as a whole or not at all.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::DataError;

/// The folder that `path` is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

const PREFIX: &str = ".writing-";
const SUFFIX: &str = ".tmp";

/// Whether a file of this name is one that [`beside`] made.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes())
}

/// A temporary file beside `path`, to be put in its place by [`Ready::put`].
pub(crate) fn beside(path: &Path) -> Result<NamedTempFile, DataError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    // Temporary files are private by default; this one becomes the user's file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(folder_of(path))
        .map_err(|error| DataError::write(path, error))
}

/// A finished file under its temporary name; without [`Ready::put`] it is taken away.
#[derive(Debug)]
pub(crate) struct Ready {
    temporary: TempPath,
    path: PathBuf,
}

impl Ready {
    /// Writes `file` through to the disk, so that only the name `path` is still to be given.
    pub(crate) fn new(file: &File, temporary: TempPath, path: PathBuf) -> Result<Self, DataError> {
        file.sync_all()
            .map_err(|error| DataError::write(&path, error))?;
        Ok(Self { temporary, path })
    }

    /// A file with these contents.
    pub(crate) fn write(path: PathBuf, contents: &[u8]) -> Result<Self, DataError> {
        let mut temporary = beside(&path)?;
        temporary
            .write_all(contents)
            .map_err(|error| DataError::write(&path, error))?;
        let (file, temporary) = temporary.into_parts();
        Self::new(&file, temporary, path)
    }

    /// Puts the file in its place; an earlier one of this name is replaced.
    pub(crate) fn put(self) -> Result<(), DataError> {
        self.temporary
            .persist(&self.path)
            .map_err(|error| DataError::write(&self.path, error.error))?;
        sync_folder_of(&self.path)
    }
}

/// Names that were given and taken in the folder of `path` are on the disk once it is. Only Unix
/// lets a folder be opened for that.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), DataError> {
    #[cfg(unix)]
    File::open(folder_of(path))
        .and_then(|folder| folder.sync_all())
        .map_err(|error| DataError::write(path, error))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
