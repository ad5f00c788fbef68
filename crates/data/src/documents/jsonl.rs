//! Documents of a JSON-lines file: one field of each line's object.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;

use serde_json::Value;

use super::cut::cut_text;
use super::files::SourceFile;
use super::text::PIECE;
use super::{FilePieces, Piece, failed};
use crate::error::DataError;

/// Longer lines are refused: a line is held in memory as a whole.
const MAX_LINE: u64 = 32 << 20;

/// The pieces of a JSON-lines file. Blank lines and empty documents are left out.
pub(super) fn pieces<'a>(file: &'a SourceFile, field: &'a str) -> FilePieces<'a> {
    match File::open(&file.path) {
        Ok(opened) => Box::new(JsonPieces {
            reader: BufReader::new(opened),
            name: file.name.clone(),
            field,
            line: 0,
            any: false,
            ended: false,
            waiting: VecDeque::new(),
        }),
        Err(error) => failed(DataError::read(&file.name, error)),
    }
}

struct JsonPieces<'a> {
    reader: BufReader<File>,
    name: PathBuf,
    field: &'a str,
    line: u64,
    any: bool,
    ended: bool,
    waiting: VecDeque<Piece>,
}

impl JsonPieces<'_> {
    /// Reads lines until there are pieces or the file ends.
    fn read(&mut self) -> Result<(), DataError> {
        let mut bytes = Vec::new();
        while self.waiting.is_empty() && !self.ended {
            bytes.clear();
            self.line += 1;
            let limited = &mut self.reader.by_ref().take(MAX_LINE + 1);
            let count = limited
                .read_until(b'\n', &mut bytes)
                .map_err(|error| DataError::read(&self.name, error))?;
            self.ended = count == 0;
            if count as u64 > MAX_LINE {
                return Err(self.bad("is longer than 32 MiB".to_owned()));
            }
            let line = bytes
                .strip_prefix(b"\xEF\xBB\xBF")
                .filter(|_| self.line == 1)
                .unwrap_or(&bytes);
            if !line.trim_ascii().is_empty() {
                let text = self.document(line)?;
                self.divide(&text);
            }
        }
        if self.ended && !self.any {
            self.any = true;
            return Err(DataError::Empty {
                path: self.name.clone(),
            });
        }
        Ok(())
    }

    fn document(&self, line: &[u8]) -> Result<String, DataError> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| self.bad(format!("is not JSON ({error})")))?;
        let Value::Object(mut object) = value else {
            return Err(self.bad("is not a JSON object".to_owned()));
        };
        match object.remove(self.field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.bad(format!("field `{}` is not a string", self.field))),
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
                let why = format!(
                    "has no field `{}`, it has {has}; hint: set `field` to the one with the text",
                    self.field
                );
                Err(self.bad(why))
            }
        }
    }

    fn divide(&mut self, text: &str) {
        self.waiting.extend(cut_text(text, PIECE).map(|part| Piece {
            text: part.to_owned(),
            start: false,
            end: false,
        }));
        if let Some(first) = self.waiting.front_mut() {
            first.start = true;
            self.any = true;
        }
        if let Some(last) = self.waiting.back_mut() {
            last.end = true;
        }
    }

    fn bad(&self, why: String) -> DataError {
        DataError::JsonLine {
            path: self.name.clone(),
            line: self.line,
            why,
        }
    }
}

impl Iterator for JsonPieces<'_> {
    type Item = Result<Piece, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.waiting.is_empty()
            && let Err(error) = self.read()
        {
            return Some(Err(error));
        }
        self.waiting.pop_front().map(Ok)
    }
}
