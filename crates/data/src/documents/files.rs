//! Finding the files of a source.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempPath;

use super::Format;
use crate::error::DataError;

/// A file to read.
#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    /// Name used in error messages.
    pub(super) name: PathBuf,
    /// Path to open.
    pub(super) path: PathBuf,
    pub(super) is_jsonl: bool,
    pub(super) bytes: u64,
    /// Deletes the temporary file when the last clone is dropped.
    _temporary: Option<Arc<TempPath>>,
}

/// Appends the files at `path` to `found`.
pub(super) fn find_files(
    path: &Path,
    format: Format,
    found: &mut Vec<SourceFile>,
) -> Result<(), DataError> {
    if path.as_os_str() == "-" {
        found.push(standard_input(format)?);
        return Ok(());
    }
    let metadata = std::fs::metadata(path).map_err(|error| DataError::read(path, error))?;
    if !metadata.is_dir() {
        found.push(source_file(path, metadata.len(), format));
        return Ok(());
    }
    let before = found.len();
    find_in_folder(path, format, found)?;
    if found.len() == before {
        return Err(DataError::Empty {
            path: path.to_path_buf(),
        });
    }
    Ok(())
}

fn source_file(path: &Path, bytes: u64, format: Format) -> SourceFile {
    let is_jsonl = match format {
        Format::Auto => has_extension(path, "jsonl"),
        Format::Text => false,
        Format::Jsonl => true,
    };
    SourceFile {
        name: path.to_path_buf(),
        path: path.to_path_buf(),
        is_jsonl,
        bytes,
        _temporary: None,
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension()
        .is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Appends the text files of a folder and its subfolders, sorted by name. Hidden files are skipped,
/// and links to folders are not followed (they could form a cycle).
fn find_in_folder(
    path: &Path,
    format: Format,
    found: &mut Vec<SourceFile>,
) -> Result<(), DataError> {
    let read_error = |error| DataError::read(path, error);
    let mut entries = std::fs::read_dir(path)
        .map_err(read_error)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(read_error)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if entry.file_type().map_err(read_error)?.is_dir() {
            find_in_folder(&path, format, found)?;
            continue;
        }
        let wanted = (format != Format::Jsonl && has_extension(&path, "txt"))
            || (format != Format::Text && has_extension(&path, "jsonl"));
        let metadata = std::fs::metadata(&path).map_err(|error| DataError::read(&path, error))?;
        if wanted && metadata.is_file() {
            found.push(source_file(&path, metadata.len(), format));
        }
    }
    Ok(())
}

/// Copies standard input to a temporary file.
fn standard_input(format: Format) -> Result<SourceFile, DataError> {
    let name = Path::new("standard input");
    let temporary = std::env::temp_dir();
    let failed = |error| DataError::write(&temporary, error);
    let mut copy = tempfile::NamedTempFile::new_in(&temporary).map_err(failed)?;
    let bytes = std::io::copy(&mut std::io::stdin().lock(), &mut copy)
        .map_err(|error| DataError::read(name, error))?;
    copy.flush().map_err(failed)?;
    let path = copy.into_temp_path();
    Ok(SourceFile {
        name: name.to_path_buf(),
        path: path.to_path_buf(),
        is_jsonl: format == Format::Jsonl,
        bytes,
        _temporary: Some(Arc::new(path)),
    })
}
