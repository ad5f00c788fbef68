//! Character tokenizer: one token per character.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

use super::special::{Segment, SpecialNames, SpecialVocab};
use super::{DecodeRules, Encoding, SpecialTokens, Tokenizer, json};
use crate::documents::TextCuts;
use crate::error::DataError;

/// Characters below this use a lookup table (covers Latin, Greek, Cyrillic, Hebrew and Arabic).
const TABLE: usize = 0x800;
const ABSENT: u32 = u32::MAX;

/// The distinct characters of a text in sorted order, then the special tokens. For nanoGPT's
/// character vocabulary, which has no special tokens, set `eos = ""`.
#[derive(Debug, Clone)]
pub struct CharTokenizer {
    characters: Vec<char>,
    table: Vec<u32>,
    others: HashMap<char, u32>,
    special: SpecialVocab,
}

impl CharTokenizer {
    /// Creates a tokenizer for the distinct characters of `text`, without special tokens: nanoGPT's
    /// character vocabulary. With special tokens, see
    /// [`TokenizerConfig::build`](super::TokenizerConfig::build).
    ///
    /// ```
    /// use nextword_data::{CharTokenizer, Tokenizer};
    ///
    /// let tokenizer = CharTokenizer::from_text("hello");
    /// assert_eq!(tokenizer.encode("hello").ids, [1, 0, 2, 2, 3]);
    /// ```
    pub fn from_text(text: &str) -> Self {
        let characters: BTreeSet<char> = text.chars().collect();
        Self::new(characters.into_iter().collect(), &SpecialNames::default())
    }

    /// Builds the vocabulary from all of `texts`.
    pub(crate) fn train(
        texts: impl Iterator<Item = Result<String, DataError>>,
        names: &SpecialNames,
    ) -> Result<Self, DataError> {
        let special = SpecialVocab::new(names, 0);
        let mut ascii = [false; 128];
        let mut others = BTreeSet::new();
        for text in texts {
            for segment in special.split(&text?) {
                let Segment::Text(text) = segment else {
                    continue;
                };
                for character in text.chars() {
                    match ascii.get_mut(character as usize) {
                        Some(seen) => *seen = true,
                        None => _ = others.insert(character),
                    }
                }
            }
        }
        let ascii = (0..128u8)
            .filter(|&c| ascii[usize::from(c)])
            .map(char::from);
        Ok(Self::new(ascii.chain(others).collect(), names))
    }

    /// Creates a tokenizer for `characters` (sorted, distinct).
    pub(crate) fn new(characters: Vec<char>, names: &SpecialNames) -> Self {
        let mut table = vec![ABSENT; TABLE];
        let mut others = HashMap::new();
        for (&character, id) in characters.iter().zip(0..) {
            match table.get_mut(character as usize) {
                Some(entry) => *entry = id,
                None => _ = others.insert(character, id),
            }
        }
        let special = SpecialVocab::new(names, characters.len());
        Self {
            characters,
            table,
            others,
            special,
        }
    }

    /// Returns the tokenizer that wrote `file`, if it is of this kind.
    pub(crate) fn try_from_json(file: &Value) -> Option<Arc<dyn Tokenizer>> {
        let names = json::special_names(file)?;
        let mut characters = Vec::new();
        for token in json::word_level_tokens(file, &names)? {
            let mut chars = token.chars();
            characters.push(chars.next()?);
            if chars.next().is_some() {
                return None;
            }
        }
        let tokenizer = Self::new(characters, &names);
        // Earlier versions wrote words also where unknown characters have no token.
        let is_same = tokenizer.to_value() == *file || tokenizer.to_word_level() == *file;
        is_same.then(|| Arc::new(tokenizer) as Arc<dyn Tokenizer>)
    }

    /// Writes each character as a word. Without an unknown token, which words need, writes a BPE model
    /// without merges: it leaves unknown characters out.
    fn to_value(&self) -> Value {
        if self.special.names().unk.is_some() {
            return self.to_word_level();
        }
        let vocab = self.word_level_model()["vocab"].take();
        self.to_file(&json::bpe_without_merges(&vocab))
    }

    fn to_word_level(&self) -> Value {
        self.to_file(&self.word_level_model())
    }

    fn word_level_model(&self) -> Value {
        let tokens: Vec<String> = self.characters.iter().map(char::to_string).collect();
        json::word_level(tokens.iter().map(String::as_str), &self.special)
    }

    fn to_file(&self, model: &Value) -> Value {
        let split_chars = json!({"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false});
        json::tokenizer_file(&self.special, &split_chars, &json!({"type": "Fuse"}), model)
    }

    fn id(&self, character: &str) -> Option<u32> {
        let character = character.chars().next()?;
        match self.table.get(character as usize) {
            Some(&id) => (id != ABSENT).then_some(id),
            None => self.others.get(&character).copied(),
        }
    }
}

/// The characters of `text`, with their positions.
fn characters(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.char_indices()
        .map(|(at, character)| (at, &text[at..at + character.len_utf8()]))
}

impl Tokenizer for CharTokenizer {
    fn vocab_size(&self) -> usize {
        self.characters.len() + self.special.count()
    }

    fn special_tokens(&self) -> SpecialTokens {
        self.special.special_tokens()
    }

    fn encode(&self, text: &str) -> Encoding {
        self.special
            .encode(text, characters, |character| self.id(character))
    }

    fn try_encode_ordinary(&self, text: &str) -> Result<Encoding, DataError> {
        Ok(self
            .special
            .encode_ordinary(text, characters, |character| self.id(character)))
    }

    fn special_texts(&self) -> Vec<String> {
        self.special.texts()
    }

    fn encode_with_ranges(&self, text: &str) -> (Encoding, Vec<Option<Range<usize>>>) {
        let ranges = self
            .special
            .ranges(text, characters, |character| self.id(character));
        (self.encode(text), ranges)
    }

    fn text_cuts(&self) -> TextCuts {
        self.special.text_cuts()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        let character = self.characters.get(id as usize).map(char::to_string);
        character.or_else(|| self.special.name(id).map(str::to_owned))
    }

    fn token_text(&self, id: u32) -> Option<String> {
        self.id_to_token(id)
    }

    fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::with_capacity(ids.len());
        for &id in ids {
            match self.characters.get(id as usize) {
                Some(&character) => text.push(character),
                None => text.push_str(self.special.unknown_name(id).unwrap_or("")),
            }
        }
        text
    }

    fn decode_with_special_tokens(&self, ids: &[u32]) -> String {
        ids.iter().filter_map(|&id| self.id_to_token(id)).collect()
    }

    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(self.decode(&[id]).into_bytes())
    }

    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer> {
        let special = self.special.clone().with_roles(eos, pad);
        Arc::new(Self {
            special,
            ..self.clone()
        })
    }

    fn decode_rules(&self) -> Option<DecodeRules> {
        Some(DecodeRules::bytes())
    }

    fn to_json(&self) -> Result<String, DataError> {
        json::to_text(&self.to_value(), "char")
    }
}
