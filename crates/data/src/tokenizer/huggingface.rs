//! Any tokenizer of Hugging Face's `tokenizers` crate, loaded from `tokenizer.json`.

mod detect;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{
    AddedVocabulary, DecoderWrapper, Model as _, OffsetType, PreTokenizedString, PreTokenizer as _,
    Token,
};

use self::detect::detect_special_tokens;
use super::alphabet::{show_bytes, token_to_bytes};
use super::checks::{
    catch_panics, check_added_tokens, check_normalized_tokens, check_unique_ids, without_dropout,
};
use super::cuts;
use super::decode_rules::DecodeRules;
use super::regex::{
    BoundedNormalizer, BoundedPreTokenizer, check_patterns, exhausted_by, with_budget,
};
use super::special::SpecialNames;
use super::token_decoder::TokenDecoder;
use super::{Encoding, SpecialTokens, Tokenizer};
use crate::documents::TextCuts;
use crate::error::DataError;

/// Maximum vocabulary size; the largest vocabularies in use have about 300,000 tokens.
const MAX_VOCAB: usize = 1 << 24;

/// A wrapper around `tokenizers::Tokenizer`. Disables padding, truncation and BPE dropout of the
/// file, bounds the work of its patterns, and catches panics of that crate.
#[derive(Debug, Clone)]
pub struct HuggingFaceTokenizer {
    inner: Box<tokenizers::Tokenizer>,
    normalizer: Option<Arc<BoundedNormalizer>>,
    pre_tokenizer: Option<Arc<BoundedPreTokenizer>>,
    special_tokens: SpecialTokens,
    vocab_size: usize,
    /// Whether decoding concatenates the bytes of the tokens.
    byte_level: bool,
    /// `None` for a decoder that only the library knows.
    decode_rules: Option<DecodeRules>,
    text_cuts: TextCuts,
}

impl HuggingFaceTokenizer {
    /// Parses the text of a `tokenizer.json`; `name` identifies it in errors.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if it is not a tokenizer.
    pub fn from_json(json: &str, name: &str) -> Result<Self, DataError> {
        let file: Value = serde_json::from_str(json).map_err(|error| {
            DataError::tokenizer(
                name,
                format!("is not JSON ({error}); hint: use a Hugging Face tokenizer.json"),
            )
        })?;
        Self::from_value(&file, json, name)
    }

    /// Like [`Self::from_json`], with the text already parsed.
    pub(crate) fn from_value(file: &Value, json: &str, name: &str) -> Result<Self, DataError> {
        if !file["model"].is_object() {
            return Err(DataError::tokenizer(
                name,
                "has no `model`; hint: use a Hugging Face tokenizer.json",
            ));
        }
        let refuse = |reason: String| DataError::tokenizer(name, reason);
        check_patterns(file).map_err(refuse)?;
        check_normalized_tokens(file, name)?;
        let json = without_dropout(file, json);
        let inner = catch_panics(name, || {
            let mut inner = tokenizers::Tokenizer::from_bytes(json.as_bytes())?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(Box::new(inner))
        })?;
        let ids: Vec<u32> =
            catch_panics(name, || Ok(inner.get_vocab(true).into_values().collect()))?;
        let vocab_size = ids.iter().max().map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 || vocab_size > MAX_VOCAB {
            return Err(DataError::tokenizer(
                name,
                format!("has a vocabulary size of {vocab_size}; supported are 1 to {MAX_VOCAB}"),
            ));
        }
        check_unique_ids(&ids, vocab_size, name)?;
        check_added_tokens(file, &inner, name)?;
        let byte_level = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        let special_tokens = detect_special_tokens(file, &inner);
        let normalizer = inner.get_normalizer().map(BoundedNormalizer::new);
        let pre_tokenizer = inner.get_pre_tokenizer().map(BoundedPreTokenizer::new);
        let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or_default();
        Ok(Self {
            normalizer: normalizer.transpose().map_err(refuse)?.map(Arc::new),
            pre_tokenizer: pre_tokenizer.transpose().map_err(refuse)?.map(Arc::new),
            decode_rules: DecodeRules::from_json(&decoder),
            text_cuts: cuts::text_cuts(file),
            inner,
            special_tokens,
            vocab_size,
            byte_level,
        })
    }

    /// Sets the EOS token to `eos`; "" removes it.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if the vocabulary does not contain `eos`.
    pub fn with_eos(mut self, eos: &str, name: &str) -> Result<Self, DataError> {
        self.special_tokens.eos = match (eos, self.inner.token_to_id(eos)) {
            ("", _) => None,
            (_, Some(id)) => Some(id),
            (_, None) => {
                let reason = format!(
                    "has no token {eos:?}; hint: remove tokenizer.eos to use the EOS token of the file"
                );
                return Err(DataError::tokenizer(name, reason));
            }
        };
        Ok(self)
    }

    /// Sets the special tokens to the configured names.
    pub(crate) fn with_names(mut self, names: &SpecialNames) -> Self {
        let id =
            |name: &Option<String>| name.as_ref().and_then(|name| self.inner.token_to_id(name));
        self.special_tokens = SpecialTokens {
            eos: id(&names.eos),
            unk: id(&names.unk),
            pad: id(&names.pad),
        };
        self
    }

    /// Sets EOS and padding token.
    pub(crate) fn set_roles(&mut self, eos: Option<u32>, pad: Option<u32>) {
        self.special_tokens.eos = eos;
        self.special_tokens.pad = pad;
    }

    fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    /// The added tokens, for a text in which special tokens are recognized.
    fn added(&self) -> &AddedVocabulary {
        self.inner.get_added_vocabulary()
    }

    /// Normalizes and pre-tokenizes `text` as the library does, within the budget.
    fn split_words(
        &self,
        text: &str,
        added: &AddedVocabulary,
    ) -> tokenizers::Result<PreTokenizedString> {
        let mut words = added.extract_and_normalize(self.normalizer.as_deref(), text);
        if let Some(rule) = &self.pre_tokenizer {
            rule.pre_tokenize(&mut words)?;
        }
        // The library ignores the error of a normalizer.
        exhausted_by().map_or(Ok(words), |reason| Err(reason.into()))
    }

    /// Like `encode` of the library.
    fn encode_whole(
        &self,
        text: &str,
        added: &AddedVocabulary,
        offsets: OffsetType,
    ) -> tokenizers::Result<tokenizers::Encoding> {
        let mut words = self.split_words(text, added)?;
        let model = self.inner.get_model();
        model.tokenize_in_pretokenized(&mut words, None)?;
        let encoding = words.into_encoding(None, 0, offsets)?;
        self.inner.post_process(encoding, None, false)
    }

    /// The ids of `text`, and what used up the budget before all of it was encoded.
    fn encode_within_budget(
        &self,
        text: &str,
        added: &AddedVocabulary,
    ) -> (Encoding, Option<String>) {
        let mut encoding = Encoding::default();
        let exhausted_by = with_budget(text.len(), || {
            match catch_panics("", || self.encode_whole(text, added, OffsetType::None)) {
                Ok(found) => encoding.ids = found.get_ids().to_vec(),
                Err(_) => self.encode_lossy(text, added, &mut encoding),
            }
            exhausted_by()
        });
        if let Some(unknown) = self.special_tokens.unk {
            let count = encoding.ids.iter().filter(|id| **id == unknown).count();
            if count > 0 && exhausted_by.is_none() {
                let dropped = encoding.dropped_count;
                // The ids are valid even if recording the unknown parts fails.
                with_budget(text.len(), || {
                    let _ = catch_panics("", || {
                        self.record_unknown_spans(text, added, unknown, &mut encoding)
                    });
                });
                encoding.unknown_count = dropped + count;
            }
        }
        (encoding, exhausted_by)
    }

    /// Encodes `text`, or says what would need too much work.
    fn try_encode_with(&self, text: &str, added: &AddedVocabulary) -> Result<Encoding, DataError> {
        let (encoding, exhausted_by) = self.encode_within_budget(text, added);
        exhausted_by.map_or(Ok(encoding), |reason| {
            let start: String = text.chars().take(32).collect();
            let reason = format!(
                "{reason} for the text that begins with {start:?}; hint: shorten or divide it, or use another \
                 tokenizer.json"
            );
            Err(DataError::tokenizer("tokenizer.json", reason))
        })
    }

    /// Encodes as much of `text` as possible and records the rest as unknown: the library fails for the
    /// whole text if it cannot encode one word.
    fn encode_lossy(&self, text: &str, added: &AddedVocabulary, encoding: &mut Encoding) {
        let mut unknown = Vec::new();
        if let Ok(ids) = catch_panics("", || self.encode_words(text, added, &mut unknown)) {
            encoding.ids.extend(ids);
            for text in &unknown {
                encoding.record_dropped(text);
            }
            return;
        }
        // Pre-tokenization failed: retry on smaller parts, unless the budget is used up.
        let parts = if exhausted_by().is_some() {
            Vec::new()
        } else {
            split_smaller(text)
        };
        if parts.is_empty() {
            encoding.record_dropped(text.trim());
        }
        for part in parts {
            self.encode_lossy(part, added, encoding);
        }
    }

    /// Like `encode` of the library, but continues after a word that the model rejects.
    fn encode_words(
        &self,
        text: &str,
        added: &AddedVocabulary,
        unknown: &mut Vec<String>,
    ) -> tokenizers::Result<Vec<u32>> {
        let mut words = self.split_words(text, added)?;
        let unknown = RefCell::new(unknown);
        words.tokenize(|word| {
            let mut tokens = Vec::new();
            self.tokenize_lossy(word.get(), &mut tokens, &mut unknown.borrow_mut());
            Ok(tokens)
        })?;
        let ids = words.into_encoding(None, 0, OffsetType::None)?;
        Ok(ids.get_ids().to_vec())
    }

    /// Tokenizes one pre-tokenized word. Without a pre-tokenizer this is the whole text, so text that
    /// the model rejects is retried by lines, then by words.
    fn tokenize_lossy(&self, text: &str, tokens: &mut Vec<Token>, unknown: &mut Vec<String>) {
        if let Ok(found) = catch_panics("", || self.inner.get_model().tokenize(text)) {
            tokens.extend(found);
            return;
        }
        let parts = split_smaller(text);
        if parts.is_empty() {
            unknown.push(text.trim().to_owned());
        }
        for part in parts {
            self.tokenize_lossy(part, tokens, unknown);
        }
    }

    /// Records the parts of `text` that were encoded as the unknown token.
    fn record_unknown_spans(
        &self,
        text: &str,
        added: &AddedVocabulary,
        unknown: u32,
        encoding: &mut Encoding,
    ) -> tokenizers::Result<()> {
        let full = self.encode_whole(text, added, OffsetType::Byte)?;
        for (_, &(start, end)) in full
            .get_ids()
            .iter()
            .zip(full.get_offsets())
            .filter(|(id, _)| **id == unknown)
        {
            encoding.record_unknown(text.get(start..end).unwrap_or(""));
        }
        Ok(())
    }

    /// The vocabulary entry of `id` that decoding uses.
    fn decoded_entry(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().simple_id_to_token(id);
        added.or_else(|| self.inner.get_model().id_to_token(id))
    }

    /// Decodes with the library, or with our rules where the library could take long or panic.
    fn decode_with(&self, ids: &[u32], skip_special: bool) -> String {
        let rules = self.decode_rules.as_ref();
        let Some(rules) = rules.filter(|rules| !rules.is_safe_in_library()) else {
            return catch_panics("", || self.inner.decode(ids, skip_special)).unwrap_or_default();
        };
        let mut decoder = TokenDecoder::new(rules);
        let tokens = ids.iter().filter_map(|&id| self.decoded_entry(id));
        let tokens = tokens.filter(|token| !skip_special || !self.is_special(token));
        let text: String = tokens.map(|token| decoder.push(token)).collect();
        text + &decoder.finish()
    }
}

/// Splits a text into lines, or a line into words with their leading space or `▁`. Returns an empty
/// list for a single word.
fn split_smaller(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    if lines.len() > 1 {
        return lines;
    }
    let mut words = Vec::new();
    let mut first = 0;
    for (index, c) in text.char_indices().skip(1) {
        if c.is_whitespace() || c == '▁' {
            words.push(&text[first..index]);
            first = index;
        }
    }
    if first > 0 {
        words.push(&text[first..]);
    }
    words
}

impl Tokenizer for HuggingFaceTokenizer {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn special_tokens(&self) -> SpecialTokens {
        self.special_tokens
    }

    fn encode(&self, text: &str) -> Encoding {
        self.encode_within_budget(text, self.added()).0
    }

    fn try_encode(&self, text: &str) -> Result<Encoding, DataError> {
        self.try_encode_with(text, self.added())
    }

    fn try_encode_ordinary(&self, text: &str) -> Result<Encoding, DataError> {
        let mut added = self.added().clone();
        added.set_encode_special_tokens(true);
        self.try_encode_with(text, &added)
    }

    fn special_texts(&self) -> Vec<String> {
        let added = self.added().get_added_tokens_decoder().values();
        let special = added.filter(|token| token.special && !token.content.is_empty());
        special.map(|token| token.content.clone()).collect()
    }

    fn encode_with_ranges(&self, text: &str) -> (Encoding, Vec<Option<Range<usize>>>) {
        let encoding = self.encode(text);
        let full = with_budget(text.len(), || {
            catch_panics("", || {
                self.encode_whole(text, self.added(), OffsetType::Byte)
            })
        });
        let ranges = match full {
            Ok(full) if full.get_ids() == encoding.ids => {
                let offsets = full.get_offsets().iter();
                offsets.map(|(start, end)| Some(*start..*end)).collect()
            }
            _ => vec![None; encoding.ids.len()],
        };
        (encoding, ranges)
    }

    fn text_cuts(&self) -> TextCuts {
        self.text_cuts
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    fn token_text(&self, id: u32) -> Option<String> {
        let token = self.id_to_token(id)?;
        if self.is_special(&token) {
            return Some(token);
        }
        Some(if self.byte_level {
            show_bytes(&token_to_bytes(&token))
        } else {
            token.replace('▁', " ")
        })
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    fn decode_with_special_tokens(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.byte_level.then(|| {
            self.decoded_token(id)
                .map(|token| token_to_bytes(&token))
                .unwrap_or_default()
        })
    }

    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer> {
        let mut tokenizer = self.clone();
        tokenizer.set_roles(eos, pad);
        Arc::new(tokenizer)
    }

    fn decoded_token(&self, id: u32) -> Option<String> {
        self.decoded_entry(id)
            .filter(|token| !self.is_special(token))
    }

    fn decode_rules(&self) -> Option<DecodeRules> {
        self.decode_rules.clone()
    }

    fn to_json(&self) -> Result<String, DataError> {
        catch_panics("tokenizer.json", || self.inner.to_string(false))
    }
}
