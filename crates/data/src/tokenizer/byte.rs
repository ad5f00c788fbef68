//! One token a byte.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::special::{Segment, SpecialNames, SpecialVocab};
use super::{Encoding, SpecialTokens, Tokenizer, json};
use crate::error::DataError;

/// Id `b` is byte `b`; the special tokens come after the 256. No text is unknown to it.
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

    /// The tokenizer that wrote `file`, if it was this kind.
    pub(crate) fn try_from_json(file: &Value) -> Option<Arc<dyn Tokenizer>> {
        // The unknown token of a BPE model is not written (no byte needs it): `unk` is not kept.
        let tokenizer = Self::new(&json::special_names(file)?);
        (tokenizer.to_value() == *file).then(|| Arc::new(tokenizer) as Arc<dyn Tokenizer>)
    }

    /// A BPE without merges over GPT-2's byte alphabet.
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

    fn to_json(&self) -> Result<String, DataError> {
        json::to_text(&self.to_value(), "byte")
    }
}

/// Whether GPT-2's alphabet shows a byte as the Latin-1 character of the same number.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// GPT-2's visible character for a byte: itself where Latin-1 prints it, else the next free one
/// from U+0100 on (`bytes_to_unicode` of the published code).
pub(crate) fn byte_to_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let index = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
    char::from_u32(0x100 + index).unwrap_or('\u{100}')
}

/// The byte behind a character of GPT-2's alphabet.
pub(crate) fn char_to_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => (0..=255)
            .filter(|&b| !is_printable(b))
            .nth(code.checked_sub(0x100)? as usize),
    }
}

/// `bytes` for a reader: text, and `\xE2` for what is no whole character.
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
    fn the_byte_alphabet_is_gpt2s() {
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(byte_to_char(0xAD), 'Ń');
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(char_to_byte('中'), None);
    }

    #[test]
    fn half_characters_are_shown_as_bytes() {
        assert_eq!(show_bytes(b"a\xE4\xB8"), "a\\xE4\\xB8");
        assert_eq!(show_bytes("é".as_bytes()), "é");
    }
}
