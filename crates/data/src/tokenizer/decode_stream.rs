//! Incremental decoding: text from ids, one by one, without partial characters.

use std::sync::Arc;

use super::Tokenizer;

/// Maximum number of tokens to hold back for an incomplete character. A character has at most 4
/// bytes, so at most 4 byte tokens; longer sequences never form a character.
const MAX_PENDING: usize = 8;

/// Decodes a stream of ids into text chunks. The concatenated chunks equal the tokenizer's
/// [`decode`](Tokenizer::decode) of all ids.
///
/// This is exact if decoding concatenates bytes. For other tokenizers (leading space of
/// `SentencePiece`, words joined by spaces) a chunk is the text that the newest tokens add to the
/// decoding of the few tokens before them. Invalid UTF-8 may then differ in the number of U+FFFD.
///
/// # Example
///
/// ```
/// use nextword_data::{DecodeStream, TokenizerConfig, TokenizerKind, build_tokenizer};
///
/// let config = TokenizerConfig { kind: TokenizerKind::Byte, ..TokenizerConfig::default() };
/// let mut stream = DecodeStream::new(build_tokenizer(&config, std::iter::empty())?);
/// assert_eq!(stream.push(0xC3), None); // the first byte of "é"
/// assert_eq!(stream.push(0xA9).as_deref(), Some("é"));
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Arc<dyn Tokenizer>,
    /// Bytes of an incomplete character.
    bytes: Vec<u8>,
    /// The last emitted tokens (context for the next ones), then the pending tokens.
    ids: Vec<u32>,
    /// Number of `ids` that were emitted.
    emitted: usize,
}

impl DecodeStream {
    /// Creates a stream at the start of a text.
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self {
            tokenizer,
            bytes: Vec::new(),
            ids: Vec::new(),
            emitted: 0,
        }
    }

    /// Adds the next id and returns the text that is now final, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let text = match self.tokenizer.token_bytes(id) {
            Some(bytes) => {
                self.bytes.extend(bytes);
                self.take_complete_chars()
            }
            None => self.push_contextual(id),
        };
        Some(text).filter(|text| !text.is_empty())
    }

    /// Returns the remaining text at the end of the stream; incomplete characters become U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let mut text = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        text.push_str(self.pending_text(true).as_deref().unwrap_or(""));
        self.ids.clear();
        self.emitted = 0;
        Some(text).filter(|text| !text.is_empty())
    }

    /// Removes the complete characters from `bytes`, like `String::from_utf8_lossy`, but leaves a
    /// character that may still be completed.
    fn take_complete_chars(&mut self) -> String {
        let mut text = String::new();
        loop {
            let Err(error) = std::str::from_utf8(&self.bytes) else {
                text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.bytes)));
                return text;
            };
            let rest = self.bytes.split_off(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(&self.bytes));
            self.bytes = rest;
            let Some(invalid) = error.error_len() else {
                return text;
            };
            self.bytes.drain(..invalid);
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn push_contextual(&mut self, id: u32) -> String {
        self.ids.push(id);
        let force = self.ids.len() - self.emitted > MAX_PENDING;
        let Some(text) = self.pending_text(force) else {
            return String::new();
        };
        if !text.is_empty() {
            self.ids.drain(..self.emitted);
            self.emitted = self.ids.len();
        } else if force {
            // Tokens without text (special tokens) are not needed as context.
            self.ids.truncate(self.emitted);
        }
        text
    }

    /// Returns the text that the pending ids add to the emitted ones; `None` if it may still change,
    /// unless `force` is set.
    fn pending_text(&self, force: bool) -> Option<String> {
        let before = self.tokenizer.decode(&self.ids[..self.emitted]);
        let all = self.tokenizer.decode(&self.ids);
        let certain = all.starts_with(&before) && !all.ends_with(char::REPLACEMENT_CHARACTER);
        (certain || force).then(|| all.get(before.len()..).unwrap_or("").to_owned())
    }
}
