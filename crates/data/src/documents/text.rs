//! Documents of a text file.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::files::SourceFile;
use super::split_text::{MAX_CHUNK_BYTES, TextCuts, last_split_point};
use super::{FileChunks, TextChunk, failed};
use crate::error::DataError;

/// Approximate chunk size in bytes.
pub(super) const CHUNK_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 64 << 10;
/// Maximum size of text that cannot be cut, since it is encoded in memory at once.
const MAX_UNCUT_BYTES: usize = 256 << 20;

/// Returns the chunks of a text file, split into documents at `separator`.
pub(super) fn chunks<'a>(
    file: &'a SourceFile,
    separator: Option<&str>,
    cuts: TextCuts,
) -> FileChunks<'a> {
    match File::open(&file.path) {
        Ok(opened) => Box::new(TextChunks {
            reader: Utf8Reader::new(opened, &file.name),
            separators: separator.map(separators).unwrap_or_default(),
            cuts,
            buffer: String::new(),
            cursor: 0,
            in_document: false,
            any_document: false,
        }),
        Err(error) => failed(DataError::read(&file.name, error)),
    }
}

/// The forms of a separator: as it is, and with the line ends of Windows, in case that the text has
/// those. A single line end is the end of every line in both kinds of text.
fn separators(separator: &str) -> Vec<String> {
    let mut forms = vec![separator.to_owned()];
    if separator.contains('\n') && separator != "\n" && !separator.contains('\r') {
        forms.push(separator.replace('\n', "\r\n"));
    }
    forms
}

struct TextChunks {
    reader: Utf8Reader,
    /// Each of these separates documents.
    separators: Vec<String>,
    cuts: TextCuts,
    /// Decoded text; the unread part starts at `cursor`.
    buffer: String,
    cursor: usize,
    /// Whether a document has started and not ended.
    in_document: bool,
    /// Whether any document was found.
    any_document: bool,
}

impl TextChunks {
    /// Reads until the unread part has `size` bytes or the file ends.
    fn fill(&mut self, size: usize) -> Result<(), DataError> {
        self.buffer.drain(..self.cursor);
        self.cursor = 0;
        while self.buffer.len() < size && !self.reader.ended {
            self.reader.read(&mut self.buffer)?;
        }
        Ok(())
    }

    /// Takes the next `length` bytes as a chunk and skips `skip` bytes after them.
    fn take(&mut self, length: usize, skip: usize, is_last: bool) -> TextChunk {
        let text = self.buffer[self.cursor..self.cursor + length].to_owned();
        self.cursor += length + skip;
        let is_first = !std::mem::replace(&mut self.in_document, !is_last);
        TextChunk {
            text,
            is_first,
            is_last,
        }
    }

    /// Returns the next chunk, possibly a blank document.
    fn next_chunk(&mut self) -> Result<Option<TextChunk>, DataError> {
        let mut size = CHUNK_BYTES;
        loop {
            let rest = &self.buffer[self.cursor..];
            let found = self.separators.iter();
            let found =
                found.filter_map(|separator| Some((rest.find(separator)?, separator.len())));
            if let Some((length, skip)) = found.min() {
                return Ok(Some(self.take(length, skip, true)));
            }
            if self.reader.ended {
                let length = rest.len();
                return Ok((length > 0 || self.in_document).then(|| self.take(length, 0, true)));
            }
            if rest.len() >= size {
                // A separator may start in the last bytes.
                let longest = self.separators.iter().map(String::len).max().unwrap_or(0);
                let safe = rest.len().saturating_sub(longest);
                let safe = &rest[..rest.floor_char_boundary(safe)];
                let is_forced = self.cuts == TextCuts::Anywhere && size >= MAX_CHUNK_BYTES;
                let forced =
                    is_forced.then(|| safe.floor_char_boundary(safe.len().saturating_sub(1)));
                if let Some(length) = last_split_point(safe, self.cuts).or(forced) {
                    return Ok(Some(self.take(length, 0, false)));
                }
                if size >= MAX_UNCUT_BYTES {
                    return Err(self.reader.not_text(format!(
                        "has a document with {} MiB that this tokenizer must read at once; hint: set `separator` \
                         to divide the text into documents",
                        MAX_UNCUT_BYTES >> 20
                    )));
                }
                size *= 2;
            }
            self.fill(size)?;
        }
    }
}

impl Iterator for TextChunks {
    type Item = Result<TextChunk, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let chunk = match self.next_chunk() {
                Ok(Some(chunk)) => chunk,
                Ok(None) if self.any_document => return None,
                Ok(None) => {
                    self.any_document = true;
                    return Some(Err(DataError::Empty {
                        path: self.reader.name.clone(),
                    }));
                }
                Err(error) => return Some(Err(error)),
            };
            let blank = !self.separators.is_empty()
                && chunk.is_first
                && chunk.is_last
                && chunk.text.trim().is_empty();
            if !blank {
                self.any_document = true;
                return Some(Ok(chunk));
            }
        }
    }
}

/// Reads and validates UTF-8 text from a file.
struct Utf8Reader {
    file: File,
    name: PathBuf,
    /// Bytes of an incomplete character at the end of the last block.
    incomplete: Vec<u8>,
    /// Bytes of the file before `incomplete`.
    position: u64,
    ended: bool,
}

impl Utf8Reader {
    fn new(file: File, name: &Path) -> Self {
        Self {
            file,
            name: name.to_path_buf(),
            incomplete: Vec::new(),
            position: 0,
            ended: false,
        }
    }

    /// Appends the next block of the file to `text`.
    fn read(&mut self, text: &mut String) -> Result<(), DataError> {
        let carried = self.incomplete.len();
        let count = (&self.file)
            .take(READ_BYTES as u64)
            .read_to_end(&mut self.incomplete)
            .map_err(|error| DataError::read(&self.name, error))?;
        self.ended = count == 0;
        if self.position == 0
            && (self.incomplete.starts_with(b"\xFF\xFE")
                || self.incomplete.starts_with(b"\xFE\xFF"))
        {
            return Err(self.not_text(
                "looks like UTF-16, not UTF-8; hint: convert it with `iconv -t UTF-8`".to_owned(),
            ));
        }
        if let Some(index) = self.incomplete[carried..]
            .iter()
            .position(|&byte| byte == 0)
        {
            let byte = self.position + (carried + index) as u64;
            return Err(self.not_text(format!(
                "looks binary: byte {byte} is 0; hint: use a UTF-8 text file"
            )));
        }
        let length = self.valid_length()?;
        let bytes = std::mem::take(&mut self.incomplete);
        let (complete, incomplete) = bytes.split_at(length);
        // Already validated, so this only borrows and replaces nothing.
        let decoded = String::from_utf8_lossy(complete);
        let without_bom = (self.position == 0)
            .then(|| decoded.strip_prefix('\u{FEFF}'))
            .flatten();
        text.push_str(without_bom.unwrap_or(&decoded));
        self.incomplete = incomplete.to_vec();
        self.position += length as u64;
        Ok(())
    }

    /// Number of bytes that form complete characters.
    fn valid_length(&self) -> Result<usize, DataError> {
        let Err(error) = std::str::from_utf8(&self.incomplete) else {
            return Ok(self.incomplete.len());
        };
        let valid = error.valid_up_to();
        if error.error_len().is_none() && !self.ended {
            return Ok(valid);
        }
        let byte = self.position + valid as u64;
        Err(self.not_text(format!(
            "is not UTF-8 text: byte {byte} is 0x{:02X}; hint: convert it with `iconv -t UTF-8`",
            self.incomplete[valid]
        )))
    }

    fn not_text(&self, reason: String) -> DataError {
        DataError::NotText {
            path: self.name.clone(),
            reason,
        }
    }
}
