//! Byte tokenizer: one token per byte.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::alphabet::{byte_to_char, show_bytes};
use super::special::{Segment, SpecialNames, SpecialVocab};
use super::{DecodeRules, Encoding, SpecialTokens, Tokenizer, json};
use crate::documents::TextCuts;
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
        let model = json::bpe_without_merges(&Value::Object(vocab));
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
            ..Encoding::default()
        }
    }

    fn try_encode_ordinary(&self, text: &str) -> Result<Encoding, DataError> {
        Ok(Encoding {
            ids: text.bytes().map(u32::from).collect(),
            ..Encoding::default()
        })
    }

    fn special_texts(&self) -> Vec<String> {
        self.special.texts()
    }

    fn encode_with_ranges(&self, text: &str) -> (Encoding, Vec<Option<Range<usize>>>) {
        let mut ranges = Vec::with_capacity(text.len());
        for (start, segment) in self.special.split_with_positions(text) {
            match segment {
                Segment::Special(id) => {
                    let length = self.special.name(id).map_or(0, str::len);
                    ranges.push(Some(start..start + length));
                }
                Segment::Text(text) => {
                    ranges.extend((start..start + text.len()).map(|at| Some(at..at + 1)));
                }
            }
        }
        (self.encode(text), ranges)
    }

    fn text_cuts(&self) -> TextCuts {
        self.special.text_cuts()
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

    fn decode_with_special_tokens(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len());
        for &id in ids {
            match u8::try_from(id) {
                Ok(byte) => bytes.push(byte),
                Err(_) => bytes.extend_from_slice(self.special.name(id).unwrap_or("").as_bytes()),
            }
        }
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

    fn decode_rules(&self) -> Option<DecodeRules> {
        Some(DecodeRules::bytes())
    }

    fn to_json(&self) -> Result<String, DataError> {
        json::to_text(&self.to_value(), "byte")
    }
}
