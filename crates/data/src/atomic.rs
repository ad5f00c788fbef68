//! Atomic file replacement with the errors of this crate.

use std::io::Write as _;
use std::path::Path;

use nextword_base::atomic::{AtomicFile, PendingFile};

use crate::error::DataError;

/// Writes a complete file that only needs to be renamed to `path`.
pub(crate) fn write_pending(path: &Path, contents: &[u8]) -> Result<PendingFile, DataError> {
    let written = AtomicFile::create(path).and_then(|mut file| {
        file.write_all(contents)?;
        file.finish()
    });
    written.map_err(|error| DataError::write(path, error))
}

/// Renames the file to its final path, replacing an earlier file.
pub(crate) fn commit(file: PendingFile) -> Result<(), DataError> {
    let path = file.path().to_path_buf();
    file.commit()
        .map_err(|error| DataError::write(&path, error))
}
