//! Files that are there as a whole or not at all.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use crate::error::DataError;

/// The folder that `path` is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// A temporary file beside `path`, to be put in its place by [`put`].
pub(crate) fn beside(path: &Path) -> Result<NamedTempFile, DataError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-").suffix(".tmp");
    // Temporary files are private by default; this one becomes the user's file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
        .tempfile_in(folder_of(path))
        .map_err(|error| DataError::write(path, error))
}

/// Writes `file` through to the disk and renames it to `path`.
pub(crate) fn put(file: &File, temporary: TempPath, path: &Path) -> Result<(), DataError> {
    let failed = |error| DataError::write(path, error);
    file.sync_all().map_err(failed)?;
    temporary
        .persist(path)
        .map_err(|error| failed(error.error))?;
    // The name is on the disk once its folder is. Only Unix lets a folder be opened for that.
    #[cfg(unix)]
    File::open(folder_of(path))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(())
}

/// Replaces the file at `path` by `contents`.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), DataError> {
    let mut temporary = beside(path)?;
    temporary
        .write_all(contents)
        .map_err(|error| DataError::write(path, error))?;
    let (file, temporary) = temporary.into_parts();
    put(&file, temporary, path)
}
