//! Small JSON files that may come from anywhere.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::ConvertError;

/// Larger files are not read: an index of a thousand shards takes less.
const LIMIT: u64 = 16 << 20;

/// The text of a file, if there is one.
pub(crate) fn text(path: &Path) -> Result<Option<String>, ConvertError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ConvertError::io(path, "read")(error)),
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(ConvertError::io(path, "read"))?;
    if bytes.len() as u64 > LIMIT {
        let problem = format!("is larger than {} MiB, which it need not be", LIMIT >> 20);
        return Err(ConvertError::source(path, problem));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| ConvertError::source(path, "is not UTF-8 text"))
}

/// The value in a JSON file, if there is one.
pub(crate) fn value(path: &Path) -> Result<Option<Value>, ConvertError> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| ConvertError::source(path, format!("is not JSON ({error})")))
}

/// `value` as a file's text.
pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
