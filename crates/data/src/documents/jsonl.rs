//! Documents of a JSON-lines file: one field of the object on each line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;

use serde_json::Value;

use super::files::SourceFile;
use super::split_text::{TextCuts, split_text};
use super::text::CHUNK_BYTES;
use super::{FileChunks, TextChunk, failed};
use crate::error::DataError;

/// Maximum line length, since each line is read into memory at once.
const MAX_LINE_BYTES: u64 = 32 << 20;

/// Returns the chunks of a JSON-lines file. Blank lines and empty documents are skipped.
pub(super) fn chunks<'a>(file: &'a SourceFile, field: &'a str, cuts: TextCuts) -> FileChunks<'a> {
    match File::open(&file.path) {
        Ok(opened) => Box::new(JsonlChunks {
            reader: BufReader::new(opened),
            name: file.name.clone(),
            field,
            cuts,
            line: 0,
            any_document: false,
            ended: false,
            pending: VecDeque::new(),
        }),
        Err(error) => failed(DataError::read(&file.name, error)),
    }
}

struct JsonlChunks<'a> {
    reader: BufReader<File>,
    name: PathBuf,
    field: &'a str,
    cuts: TextCuts,
    line: u64,
    any_document: bool,
    ended: bool,
    pending: VecDeque<TextChunk>,
}

/// The text of `error` about one line of a file: with the column only, since its line is always the first.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((problem, _)) => format!("{problem} at column {}", error.column()),
        None => text,
    }
}

impl JsonlChunks<'_> {
    /// Reads lines until a chunk is available or the file ends.
    fn read(&mut self) -> Result<(), DataError> {
        let mut bytes = Vec::new();
        while self.pending.is_empty() && !self.ended {
            bytes.clear();
            self.line += 1;
            let limited = &mut self.reader.by_ref().take(MAX_LINE_BYTES + 1);
            let count = limited
                .read_until(b'\n', &mut bytes)
                .map_err(|error| DataError::read(&self.name, error))?;
            self.ended = count == 0;
            if count as u64 > MAX_LINE_BYTES {
                return Err(
                    self.line_error("is longer than 32 MiB; hint: split the document".to_owned())
                );
            }
            let line = bytes
                .strip_prefix(b"\xEF\xBB\xBF")
                .filter(|_| self.line == 1)
                .unwrap_or(&bytes);
            if !line.trim_ascii().is_empty() {
                let text = self.document(line)?;
                self.push_document(&text);
            }
        }
        if self.ended && !self.any_document {
            self.any_document = true;
            return Err(DataError::Empty {
                path: self.name.clone(),
            });
        }
        Ok(())
    }

    fn document(&self, line: &[u8]) -> Result<String, DataError> {
        let value: Value = serde_json::from_slice(line.trim_ascii_end())
            .map_err(|error| self.line_error(format!("is not JSON ({})", without_line(&error))))?;
        let Value::Object(mut object) = value else {
            return Err(self.line_error("is not a JSON object".to_owned()));
        };
        match object.remove(self.field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.line_error(format!("field `{}` is not a string", self.field))),
            None => {
                let fields: Vec<String> = object
                    .keys()
                    .take(8)
                    .map(|key| format!("`{key}`"))
                    .collect();
                let has = if fields.is_empty() {
                    "none".to_owned()
                } else {
                    fields.join(", ")
                };
                let reason = format!(
                    "has no field `{}`; its fields are: {has}; hint: name the one with the text, with --set data.field=NAME \
                     for train and plan, or --field NAME for prepare and eval",
                    self.field
                );
                Err(self.line_error(reason))
            }
        }
    }

    fn push_document(&mut self, text: &str) {
        self.pending.extend(
            split_text(text, CHUNK_BYTES, self.cuts).map(|text| TextChunk {
                text: text.to_owned(),
                is_first: false,
                is_last: false,
            }),
        );
        if let Some(first) = self.pending.front_mut() {
            first.is_first = true;
            self.any_document = true;
        }
        if let Some(last) = self.pending.back_mut() {
            last.is_last = true;
        }
    }

    fn line_error(&self, reason: String) -> DataError {
        DataError::JsonLine {
            path: self.name.clone(),
            line: self.line,
            reason,
        }
    }
}

impl Iterator for JsonlChunks<'_> {
    type Item = Result<TextChunk, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pending.is_empty()
            && let Err(error) = self.read()
        {
            return Some(Err(error));
        }
        self.pending.pop_front().map(Ok)
    }
}
