//! Finding files, and splitting them into records.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::{ChatError, Json, RecordSource};

/// Maximum length of a line, since each line is read into memory at once.
const MAX_LINE_BYTES: u64 = 32 << 20;
/// Maximum size of a file that is a list, which is read into memory at once.
const MAX_LIST_BYTES: u64 = 1 << 30;
/// Maximum depth of folders.
const MAX_DEPTH: usize = 32;

/// The files at `paths`, in order.
pub(super) fn find_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ChatError> {
    let mut found = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| read_error(path, error))?;
        if !metadata.is_dir() {
            found.push(path.clone());
            continue;
        }
        let before = found.len();
        find_in_folder(path, 0, &mut found)?;
        if found.len() == before {
            let problem = "contains no .jsonl or .json file; hint: name the files";
            return Err(unreadable(path, problem));
        }
    }
    Ok(found)
}

/// Appends the files of a folder and its subfolders, sorted by name. Hidden files are skipped, and links to folders
/// are not followed (they could form a cycle).
fn find_in_folder(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ChatError> {
    if depth > MAX_DEPTH {
        let problem = format!("is in more than {MAX_DEPTH} folders; hint: move it up");
        return Err(unreadable(path, problem));
    }
    let failed = |error| read_error(path, error);
    let entries = fs::read_dir(path).map_err(failed)?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            find_in_folder(&path, depth + 1, found)?;
        } else if has_extension(&path, "jsonl") || has_extension(&path, "json") {
            found.push(path);
        }
    }
    Ok(())
}

/// Calls `on_record` for each record of a file.
pub(super) fn read_file(
    path: &Path,
    mut on_record: impl FnMut(RecordSource, Json) -> Result<(), ChatError>,
) -> Result<(), ChatError> {
    let file = File::open(path).map_err(|error| read_error(path, error))?;
    let mut reader = BufReader::new(file);
    let start = reader.fill_buf().map_err(|error| read_error(path, error))?;
    let start = without_mark(start).trim_ascii_start();
    if has_extension(path, "json") && start.first() == Some(&b'[') {
        read_list(path, reader, on_record)
    } else {
        read_lines(path, reader, &mut on_record)
    }
}

fn read_list(
    path: &Path,
    reader: BufReader<File>,
    mut on_record: impl FnMut(RecordSource, Json) -> Result<(), ChatError>,
) -> Result<(), ChatError> {
    let mut bytes = Vec::new();
    let mut limited = reader.take(MAX_LIST_BYTES + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|error| read_error(path, error))?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        let problem =
            "is a list of more than 1 GiB; hint: write one record per line to a .jsonl file";
        return Err(unreadable(path, problem));
    }
    let list: Vec<Json> = serde_json::from_slice(without_mark(&bytes)).map_err(|error| {
        let problem = format!("is not JSON ({error}); hint: correct the file");
        unreadable(path, problem)
    })?;
    for (record, number) in list.into_iter().zip(1..) {
        let source = RecordSource {
            path: path.to_path_buf(),
            number,
            is_list: true,
        };
        on_record(source, record)?;
    }
    Ok(())
}

fn read_lines(
    path: &Path,
    mut reader: BufReader<File>,
    on_record: &mut impl FnMut(RecordSource, Json) -> Result<(), ChatError>,
) -> Result<(), ChatError> {
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let mut limited = reader.by_ref().take(MAX_LINE_BYTES + 1);
        let count = limited.read_until(b'\n', &mut bytes);
        if count.map_err(|error| read_error(path, error))? == 0 {
            break;
        }
        let source = RecordSource {
            path: path.to_path_buf(),
            number,
            is_list: false,
        };
        let invalid = |problem: String| ChatError::Record {
            place: source.clone(),
            problem,
        };
        if bytes.len() as u64 > MAX_LINE_BYTES {
            let problem = "the line is longer than 32 MiB; hint: divide the record".to_owned();
            return Err(invalid(problem));
        }
        let line = if number == 1 {
            without_mark(&bytes)
        } else {
            &bytes
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record = serde_json::from_slice(line.trim_ascii_end());
        let record = record.map_err(|error| invalid(not_json(&error)))?;
        on_record(source, record)?;
    }
    Ok(())
}

/// What is wrong with a line that is not JSON: with the column only, since its line is always the first.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let problem = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(text, _)| text);
    let column = error.column();
    format!(
        "not JSON ({problem} at column {column}); hint: write one record per line, or a list to a .json file"
    )
}

/// `bytes` without the mark that some editors put at the start of a file.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    let found = path.extension();
    found.is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

fn read_error(path: &Path, error: io::Error) -> ChatError {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => {
            "does not exist; hint: check the path; relative paths start at the current directory"
                .to_owned()
        }
        _ => format!("cannot be read: {error}"),
    };
    unreadable(path, problem)
}

fn unreadable(path: &Path, problem: impl Into<String>) -> ChatError {
    ChatError::Read {
        path: path.to_path_buf(),
        problem: problem.into(),
    }
}
