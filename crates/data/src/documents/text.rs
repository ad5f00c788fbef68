//! Documents of a text file.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::cut::{LONGEST, last_cut};
use super::files::SourceFile;
use super::{FilePieces, Piece, failed};
use crate::error::DataError;

/// About the size of a piece, in bytes.
pub(super) const PIECE: usize = 256 << 10;
const READ: usize = 64 << 10;

/// The pieces of a text file, divided at `separator`.
pub(super) fn pieces<'a>(file: &'a SourceFile, separator: Option<&'a str>) -> FilePieces<'a> {
    match File::open(&file.path) {
        Ok(opened) => Box::new(TextPieces {
            characters: Characters::new(opened, &file.name),
            separator,
            buffer: String::new(),
            at: 0,
            inside: false,
            any: false,
        }),
        Err(error) => failed(DataError::read(&file.name, error)),
    }
}

struct TextPieces<'a> {
    characters: Characters,
    separator: Option<&'a str>,
    /// Text that was read; `at` is where the rest begins.
    buffer: String,
    at: usize,
    /// A document has begun and not ended.
    inside: bool,
    /// There was a document.
    any: bool,
}

impl TextPieces<'_> {
    /// Reads on until the rest has `size` bytes or the file ends.
    fn fill(&mut self, size: usize) -> Result<(), DataError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        while self.buffer.len() < size && !self.characters.ended {
            self.characters.read(&mut self.buffer)?;
        }
        Ok(())
    }

    /// The next `length` bytes as a piece, with `skip` bytes after them left out.
    fn take(&mut self, length: usize, skip: usize, end: bool) -> Piece {
        let text = self.buffer[self.at..self.at + length].to_owned();
        self.at += length + skip;
        let start = !std::mem::replace(&mut self.inside, !end);
        Piece { text, start, end }
    }

    /// The next piece; one of white space alone may be no document.
    fn piece(&mut self) -> Result<Option<Piece>, DataError> {
        let mut size = PIECE;
        loop {
            let rest = &self.buffer[self.at..];
            if let Some((length, separator)) =
                self.separator.and_then(|sep| Some((rest.find(sep)?, sep)))
            {
                return Ok(Some(self.take(length, separator.len(), true)));
            }
            if self.characters.ended {
                let length = rest.len();
                return Ok((length > 0 || self.inside).then(|| self.take(length, 0, true)));
            }
            if rest.len() >= size {
                // A separator may have begun in the last bytes.
                let safe = rest.len()
                    - self
                        .separator
                        .map_or(0, |separator| separator.len().min(rest.len()));
                let safe = &rest[..rest.floor_char_boundary(safe)];
                let forced = (size >= LONGEST)
                    .then(|| safe.floor_char_boundary(safe.len().saturating_sub(1)));
                if let Some(length) = last_cut(safe).or(forced) {
                    return Ok(Some(self.take(length, 0, false)));
                }
                size *= 2;
            }
            self.fill(size)?;
        }
    }
}

impl Iterator for TextPieces<'_> {
    type Item = Result<Piece, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let piece = match self.piece() {
                Ok(Some(piece)) => piece,
                Ok(None) if self.any => return None,
                Ok(None) => {
                    self.any = true;
                    return Some(Err(DataError::Empty {
                        path: self.characters.name.clone(),
                    }));
                }
                Err(error) => return Some(Err(error)),
            };
            let blank = self.separator.is_some()
                && piece.start
                && piece.end
                && piece.text.trim().is_empty();
            if !blank {
                self.any = true;
                return Some(Ok(piece));
            }
        }
    }
}

/// UTF-8 text from a file, checked as it is read.
struct Characters {
    file: File,
    name: PathBuf,
    /// Bytes of a character whose end is not read yet.
    half: Vec<u8>,
    /// Bytes of the file before `half`.
    position: u64,
    ended: bool,
}

impl Characters {
    fn new(file: File, name: &Path) -> Self {
        Self {
            file,
            name: name.to_path_buf(),
            half: Vec::new(),
            position: 0,
            ended: false,
        }
    }

    /// Adds the next stretch of the file to `text`.
    fn read(&mut self, text: &mut String) -> Result<(), DataError> {
        let held = self.half.len();
        let count = (&self.file)
            .take(READ as u64)
            .read_to_end(&mut self.half)
            .map_err(|error| DataError::read(&self.name, error))?;
        self.ended = count == 0;
        if self.position == 0
            && (self.half.starts_with(b"\xFF\xFE") || self.half.starts_with(b"\xFE\xFF"))
        {
            return Err(self.not_text(
                "looks like UTF-16, not UTF-8; hint: convert it with `iconv -t UTF-8`".to_owned(),
            ));
        }
        if let Some(at) = self.half[held..].iter().position(|&byte| byte == 0) {
            let byte = self.position + (held + at) as u64;
            return Err(self.not_text(format!(
                "looks binary: byte {byte} is 0; hint: give UTF-8 text"
            )));
        }
        let length = self.valid_length()?;
        let bytes = std::mem::take(&mut self.half);
        let (whole, half) = bytes.split_at(length);
        let read = String::from_utf8_lossy(whole); // valid: borrowed, nothing is replaced
        let marked = (self.position == 0)
            .then(|| read.strip_prefix('\u{FEFF}'))
            .flatten();
        text.push_str(marked.unwrap_or(&read));
        self.half = half.to_vec();
        self.position += length as u64;
        Ok(())
    }

    /// How many of the held bytes are whole characters.
    fn valid_length(&self) -> Result<usize, DataError> {
        let Err(error) = std::str::from_utf8(&self.half) else {
            return Ok(self.half.len());
        };
        let at = error.valid_up_to();
        if error.error_len().is_none() && !self.ended {
            return Ok(at);
        }
        let byte = self.position + at as u64;
        Err(self.not_text(format!(
            "is not UTF-8 text: byte {byte} is 0x{:02X}; hint: convert it with `iconv -t UTF-8`",
            self.half[at]
        )))
    }

    fn not_text(&self, why: String) -> DataError {
        DataError::NotText {
            path: self.name.clone(),
            why,
        }
    }
}
