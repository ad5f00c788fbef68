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
    /// What errors call it.
    pub(super) name: PathBuf,
    /// What is opened.
    pub(super) path: PathBuf,
    pub(super) is_jsonl: bool,
    pub(super) bytes: u64,
    /// Deletes a temporary file when the last user is gone.
    _temporary: Option<Arc<TempPath>>,
}

/// Adds the files behind `path` to `found`.
pub(super) fn find(
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
        found.push(file(path, metadata.len(), format));
        return Ok(());
    }
    let before = found.len();
    folder(path, format, found)?;
    if found.len() == before {
        return Err(DataError::Empty {
            path: path.to_path_buf(),
        });
    }
    Ok(())
}

fn file(path: &Path, bytes: u64, format: Format) -> SourceFile {
    let is_jsonl = match format {
        Format::Auto => has_ending(path, "jsonl"),
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

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension()
        .is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

/// The text files of a folder and its subfolders, sorted by name. Hidden ones are left out, and
/// links to folders are not followed (they could lead round in a circle).
fn folder(path: &Path, format: Format, found: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let at = |error| DataError::read(path, error);
    let mut entries = std::fs::read_dir(path)
        .map_err(at)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(at)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if entry.file_type().map_err(at)?.is_dir() {
            folder(&path, format, found)?;
            continue;
        }
        let wanted = (format != Format::Jsonl && has_ending(&path, "txt"))
            || (format != Format::Text && has_ending(&path, "jsonl"));
        let metadata = std::fs::metadata(&path).map_err(|error| DataError::read(&path, error))?;
        if wanted && metadata.is_file() {
            found.push(file(&path, metadata.len(), format));
        }
    }
    Ok(())
}

/// Standard input, in a temporary file.
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
