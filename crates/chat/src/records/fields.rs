//! The fields of records.

use super::{DropReason, RecordFormat};
use crate::{Example, Json};

/// A parsed record.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) format: RecordFormat,
    /// `None` if it cannot be trained.
    pub(super) example: Option<Example>,
    /// What was left out of it, or why all of it was.
    pub(super) dropped: Vec<DropReason>,
}

impl Parsed {
    pub(super) fn new(format: RecordFormat, example: Result<Example, DropReason>) -> Self {
        let (example, dropped) = match example {
            Ok(example) => (Some(example), Vec::new()),
            Err(reason) => (None, vec![reason]),
        };
        Self {
            format,
            example,
            dropped,
        }
    }
}

/// Whether the record has a value for `name` that is not `null`.
pub(super) fn has_field(record: &Json, name: &str) -> bool {
    record.get(name).is_some_and(|value| !value.is_null())
}

/// The text of the field `name`.
pub(super) fn string<'a>(record: &'a Json, name: &str) -> Result<&'a str, String> {
    match record.get(name) {
        Some(Json::String(text)) => Ok(text),
        Some(Json::Null) | None => Err(format!("`{name}` is missing; hint: add it as a string")),
        Some(other) => Err(format!(
            "`{name}` is {}; hint: write a string",
            other.kind()
        )),
    }
}

/// A text for an error message, at most 40 characters of it.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}
