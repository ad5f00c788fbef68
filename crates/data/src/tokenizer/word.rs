//! Word tokenizer: white-space separated words, for texts like `what is statquest <EOS>`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

use super::special::{Segment, SpecialNames, SpecialVocab};
use super::{DecodeRules, Encoding, SpecialTokens, Tokenizer, json};
use crate::documents::TextCuts;
use crate::error::DataError;

/// Maximum number of distinct words, to bound memory.
const MAX_DISTINCT: usize = 1_000_000;

/// Words by decreasing frequency (ties: by first occurrence), then the special tokens. Decoding joins
/// words with one space; other white space is lost.
#[derive(Debug, Clone)]
pub struct WordTokenizer {
    words: Vec<String>,
    ids: HashMap<String, u32>,
    special: SpecialVocab,
}

impl WordTokenizer {
    /// Builds the vocabulary from all of `texts`, with at most `vocab_size` entries including special
    /// tokens.
    pub(crate) fn train(
        texts: impl Iterator<Item = Result<String, DataError>>,
        vocab_size: Option<usize>,
        names: &SpecialNames,
    ) -> Result<Self, DataError> {
        let counts = count_words(texts, &SpecialVocab::new(names, 0))?;
        let mut words: Vec<(String, u64, usize)> = counts
            .into_iter()
            .map(|(word, (count, first))| (word, count, first))
            .collect();
        words.sort_unstable_by_key(|&(_, count, first)| (std::cmp::Reverse(count), first));
        if let Some(size) = vocab_size {
            words.truncate(size.saturating_sub(names.count()).max(1));
        }
        Ok(Self::new(
            words.into_iter().map(|(word, ..)| word).collect(),
            names,
        ))
    }

    /// Creates a tokenizer for `words` (distinct).
    pub(crate) fn new(words: Vec<String>, names: &SpecialNames) -> Self {
        let ids = words.iter().cloned().zip(0..).collect();
        let special = SpecialVocab::new(names, words.len());
        Self {
            words,
            ids,
            special,
        }
    }

    /// Returns the tokenizer that wrote `file`, if it is of this kind.
    pub(crate) fn try_from_json(file: &Value) -> Option<Arc<dyn Tokenizer>> {
        let names = json::special_names(file)?;
        let tokenizer = Self::new(json::word_level_tokens(file, &names)?, &names);
        (tokenizer.to_value() == *file).then(|| Arc::new(tokenizer) as Arc<dyn Tokenizer>)
    }

    fn to_value(&self) -> Value {
        let model = json::word_level(self.words.iter().map(String::as_str), &self.special);
        json::tokenizer_file(
            &self.special,
            &json!({"type": "WhitespaceSplit"}),
            &Value::Null,
            &model,
        )
    }
}

impl WordTokenizer {
    /// The text of a token: none for special tokens, except the unknown token.
    fn decoded_word(&self, id: u32) -> Option<&str> {
        let word = self.words.get(id as usize).map(String::as_str);
        word.or_else(|| self.special.unknown_name(id))
    }
}

/// The words of `text`, with their positions.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    // Each word is a part of `text`.
    text.split_whitespace()
        .map(|word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

/// Counts each word; also returns its rank by first occurrence.
fn count_words(
    texts: impl Iterator<Item = Result<String, DataError>>,
    special: &SpecialVocab,
) -> Result<HashMap<String, (u64, usize)>, DataError> {
    let mut counts: HashMap<String, (u64, usize)> = HashMap::new();
    for text in texts {
        let text = text?;
        let words = special.split(&text).flat_map(|segment| match segment {
            Segment::Text(text) => text.split_whitespace(),
            Segment::Special(_) => "".split_whitespace(),
        });
        for word in words {
            if let Some((count, _)) = counts.get_mut(word) {
                *count += 1;
            } else {
                counts.insert(word.to_owned(), (1, counts.len()));
            }
        }
        if counts.len() > MAX_DISTINCT {
            return Err(DataError::tokenizer(
                "word",
                format!(
                    "the text has more than {MAX_DISTINCT} distinct words; hint: set tokenizer.kind = \"bpe\""
                ),
            ));
        }
    }
    Ok(counts)
}

impl Tokenizer for WordTokenizer {
    fn vocab_size(&self) -> usize {
        self.words.len() + self.special.count()
    }

    fn special_tokens(&self) -> SpecialTokens {
        self.special.special_tokens()
    }

    fn encode(&self, text: &str) -> Encoding {
        self.special
            .encode(text, words, |word| self.ids.get(word).copied())
    }

    fn try_encode_ordinary(&self, text: &str) -> Result<Encoding, DataError> {
        Ok(self
            .special
            .encode_ordinary(text, words, |word| self.ids.get(word).copied()))
    }

    fn special_texts(&self) -> Vec<String> {
        self.special.texts()
    }

    fn encode_with_ranges(&self, text: &str) -> (Encoding, Vec<Option<Range<usize>>>) {
        let ranges = self
            .special
            .ranges(text, words, |word| self.ids.get(word).copied());
        (self.encode(text), ranges)
    }

    fn text_cuts(&self) -> TextCuts {
        TextCuts::BeforeWhitespace
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        let special = || self.special.name(id).map(str::to_owned);
        self.words.get(id as usize).cloned().or_else(special)
    }

    fn token_text(&self, id: u32) -> Option<String> {
        self.id_to_token(id)
    }

    fn decode(&self, ids: &[u32]) -> String {
        let words = ids.iter().filter_map(|&id| self.decoded_word(id));
        words.collect::<Vec<&str>>().join(" ")
    }

    fn decode_with_special_tokens(&self, ids: &[u32]) -> String {
        let words = ids.iter().filter_map(|&id| self.id_to_token(id));
        words.collect::<Vec<String>>().join(" ")
    }

    fn token_bytes(&self, _id: u32) -> Option<Vec<u8>> {
        None
    }

    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer> {
        let special = self.special.clone().with_roles(eos, pad);
        Arc::new(Self {
            special,
            ..self.clone()
        })
    }

    fn decoded_token(&self, id: u32) -> Option<String> {
        self.decoded_word(id).map(str::to_owned)
    }

    fn decode_rules(&self) -> Option<DecodeRules> {
        Some(DecodeRules::words())
    }

    fn to_json(&self) -> Result<String, DataError> {
        json::to_text(&self.to_value(), "word")
    }
}
