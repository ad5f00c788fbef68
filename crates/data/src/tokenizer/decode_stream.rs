//! Text from ids, one by one, never half a character.

use std::sync::Arc;

use super::Tokenizer;

/// So many tokens may wait for the rest of a character. One needs at most 4 bytes, so at most 4
/// byte tokens; more are bytes that never become text.
const MAX_PENDING: usize = 8;

/// Decodes a stream of ids. The pieces that it gives, joined, are the tokenizer's
/// [`decode`](Tokenizer::decode) of all ids.
///
/// Where decoding is joining bytes, that is exact. Elsewhere (`SentencePiece`'s leading space,
/// words joined by spaces) a piece is what the newest tokens add to the decoding of the few before
/// them; text that a model makes of bytes that are not UTF-8 may then differ in the number of
/// U+FFFD.
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Arc<dyn Tokenizer>,
    /// Bytes of a character that is not whole yet.
    bytes: Vec<u8>,
    /// The last tokens that were emitted out (for what they do to the next), then those that wait.
    ids: Vec<u32>,
    /// How many of `ids` were emitted out.
    emitted: usize,
}

impl DecodeStream {
    /// A stream at the beginning of a text.
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self {
            tokenizer,
            bytes: Vec::new(),
            ids: Vec::new(),
            emitted: 0,
        }
    }

    /// Takes the next id; gives the text that is certain now, if there is any.
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

    /// The rest at the end of the stream: what is still no whole character becomes U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let mut text = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        text.push_str(self.pending_text(true).as_deref().unwrap_or(""));
        self.ids.clear();
        self.emitted = 0;
        Some(text).filter(|text| !text.is_empty())
    }

    /// Takes the whole characters out of `bytes`, as `String::from_utf8_lossy` does, but keeps a
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
            // Tokens without text (special ones) need not be remembered.
            self.ids.truncate(self.emitted);
        }
        text
    }

    /// What the waiting ids add to those emitted out; `None` if that may still change and it is not
    /// `force`.
    fn pending_text(&self, force: bool) -> Option<String> {
        let before = self.tokenizer.decode(&self.ids[..self.emitted]);
        let all = self.tokenizer.decode(&self.ids);
        let certain = all.starts_with(&before) && !all.ends_with(char::REPLACEMENT_CHARACTER);
        (certain || force).then(|| all.get(before.len()..).unwrap_or("").to_owned())
    }
}
