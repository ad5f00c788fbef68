//! Small, untrusted JSON files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nextword_base::git_lfs;
use serde_json::Value;

use crate::ConvertError;

/// Maximum size of a file. The index of a thousand shards is smaller.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a text file. Returns `None` if it does not exist.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, ConvertError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ConvertError::io(path, "read")(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(ConvertError::io(path, "read"))?;
    if bytes.len() as u64 > MAX_BYTES {
        let problem = format!(
            "is larger than {} MiB, the maximum for this file",
            MAX_BYTES >> 20
        );
        return Err(ConvertError::source(path, problem));
    }
    if git_lfs::is_pointer(&bytes) {
        return Err(ConvertError::source(path, git_lfs::POINTER_PROBLEM));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| ConvertError::source(path, "is not UTF-8 text"))
}

/// Reads a JSON file. Returns `None` if it does not exist.
pub(crate) fn read_value(path: &Path) -> Result<Option<Value>, ConvertError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let problem = format!("is not valid JSON ({error}); hint: download the file again");
        ConvertError::source(path, problem)
    })
}

/// Formats `value` as the content of a file.
pub(crate) fn to_pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
