//! Byte tokenizer: one token per byte.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::special::{Segment, SpecialNames, SpecialVocab};
use super::{Encoding, SpecialTokens, Tokenizer, json};
use crate::error::DataError;

/// Id `b` is byte `b`; special tokens follow at 256. Every text can be encoded.
#[derive(Debug, Clone)]
pub struct ByteTokenizer {
    special: SpecialVocab,
}

impl ByteTokenizer {
    pub(crate) fn new(names: &SpecialNames) -> Self {
        Self {
            special: SpecialVocab::new(names, 256),
        }
    }

    /// Returns the tokenizer that wrote `file`, if it is of this kind.
    pub(crate) fn try_from_json(file: &Value) -> Option<Arc<dyn Tokenizer>> {
        // The unknown token is not written (bytes need none), so `unk` does not survive a round trip.
        let tokenizer = Self::new(&json::special_names(file)?);
        (tokenizer.to_value() == *file).then(|| Arc::new(tokenizer) as Arc<dyn Tokenizer>)
    }

    /// Writes a BPE model without merges over GPT-2's byte alphabet.
    fn to_value(&self) -> Value {
        let vocab: Map<String, Value> = (0..=255)
            .map(|b| (byte_to_char(b).to_string(), json!(b)))
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [],
        });
        json::tokenizer_file(&self.special, &bytes, &bytes, &model)
    }
}

impl Tokenizer for ByteTokenizer {
    fn vocab_size(&self) -> usize {
        256 + self.special.count()
    }

    fn special_tokens(&self) -> SpecialTokens {
        self.special.special_tokens()
    }

    fn encode(&self, text: &str) -> Encoding {
        let mut ids = Vec::with_capacity(text.len());
        for segment in self.special.split(text) {
            match segment {
                Segment::Special(id) => ids.push(id),
                Segment::Text(text) => ids.extend(text.bytes().map(u32::from)),
            }
        }
        Encoding {
            ids,
            unknown: Vec::new(),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match u8::try_from(id) {
            Ok(byte) => Some(byte_to_char(byte).to_string()),
            Err(_) => self.special.name(id).map(str::to_owned),
        }
    }

    fn token_text(&self, id: u32) -> Option<String> {
        match u8::try_from(id) {
            Ok(byte) => Some(show_bytes(&[byte])),
            Err(_) => self.special.name(id).map(str::to_owned),
        }
    }

    fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(u8::try_from(id).into_iter().collect())
    }

    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer> {
        Arc::new(Self {
            special: self.special.clone().with_roles(eos, pad),
        })
    }

    fn to_json(&self) -> Result<String, DataError> {
        json::to_text(&self.to_value(), "byte")
    }
}

/// Whether GPT-2's alphabet maps a byte to the Latin-1 character with the same code.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Returns GPT-2's printable character for a byte: the Latin-1 character if printable, otherwise the
/// next unused one from U+0100 on (`bytes_to_unicode` of the published code).
///
/// ```
/// assert_eq!(("a b".bytes().map(nextword_data::byte_to_char)).collect::<String>(), "aĠb");
/// ```
pub fn byte_to_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + index).unwrap_or('\u{100}')
}

/// Returns the byte for a character of GPT-2's alphabet.
pub(crate) fn char_to_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => (0..=255)
            .filter(|&b| !is_printable(b))
            .nth(code.checked_sub(0x100)? as usize),
    }
}

/// Formats `bytes` for display: text, with invalid bytes as `\xE2`.
pub(crate) fn show_bytes(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(shown, "\\x{byte:02X}");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_matches_gpt2() {
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(0xAD), 'Ń');
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(char_to_byte('中'), None);
    }

    #[test]
    fn incomplete_characters_are_shown_as_bytes() {
        assert_eq!(show_bytes(b"a\xE4\xB8"), "a\\xE4\\xB8");
        assert_eq!(show_bytes("é".as_bytes()), "é");
    }
}
