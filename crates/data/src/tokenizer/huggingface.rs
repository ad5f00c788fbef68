//! Any tokenizer of Hugging Face's `tokenizers` crate, loaded from `tokenizer.json`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{DecoderWrapper, Model as _, OffsetType, PreTokenizer as _, Token};

use super::byte::{char_to_byte, show_bytes};
use super::special::{SpecialNames, is_padding_name};
use super::{Encoding, SpecialTokens, Tokenizer};
use crate::error::DataError;

/// Names of EOS tokens; document ends come before chat turn ends.
const EOS_NAMES: &[&str] = &[
    "<EOS>",
    "<eos>",
    "[EOS]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|return|>",
];
/// Special tokens whose names contain one of these are not EOS tokens.
const NOT_EOS: &[&str] = &[
    "unk", "pad", "bos", "mask", "cls", "sep", "start", "begin", "<s>",
];

/// Whether a token with this name usually ends a text. Use it only where no file says which token does.
///
/// ```
/// assert!(nextword_data::is_eos_name("<|endoftext|>") && !nextword_data::is_eos_name("<|user|>"));
/// ```
pub fn is_eos_name(name: &str) -> bool {
    EOS_NAMES.contains(&name)
}

/// Whether a special token with this name cannot be an EOS token.
pub(crate) fn is_non_eos_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !EOS_NAMES.contains(&name) && NOT_EOS.iter().any(|part| lower.contains(part))
}

/// Maximum vocabulary size; the largest vocabularies in use have about 300,000 tokens.
const MAX_VOCAB: usize = 1 << 24;

/// A wrapper around `tokenizers::Tokenizer`. Disables padding, truncation and BPE dropout of the
/// file, and catches panics of that crate.
#[derive(Debug, Clone)]
pub struct HuggingFaceTokenizer {
    inner: Box<tokenizers::Tokenizer>,
    special_tokens: SpecialTokens,
    vocab_size: usize,
    /// Whether decoding concatenates the bytes of the tokens.
    byte_level: bool,
}

/// Runs code of the `tokenizers` crate and converts its errors and panics to [`DataError`].
pub(crate) fn catch_panics<T>(
    name: &str,
    work: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T, DataError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| DataError::tokenizer(name, error)),
        Err(_) => Err(DataError::tokenizer(
            name,
            "the `tokenizers` library cannot process it; hint: check that the file is intact",
        )),
    }
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
        Ok(Self {
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

    /// Encodes as much of `text` as possible and records the rest as unknown: the library fails for the
    /// whole text if it cannot encode one word.
    fn encode_lossy(&self, text: &str, encoding: &mut Encoding) {
        let mut unknown = Vec::new();
        if let Ok(ids) = catch_panics("", || self.encode_words(text, &mut unknown)) {
            encoding.ids.extend(ids);
            for text in &unknown {
                encoding.record_unknown(text);
            }
            return;
        }
        // Pre-tokenization failed: retry on smaller parts.
        let parts = split_smaller(text);
        if parts.is_empty() {
            encoding.record_unknown(text.trim());
        }
        for part in parts {
            self.encode_lossy(part, encoding);
        }
    }

    /// Like `encode` of the library, but continues after a word that the model rejects.
    fn encode_words(&self, text: &str, unknown: &mut Vec<String>) -> tokenizers::Result<Vec<u32>> {
        let mut words = self
            .inner
            .get_added_vocabulary()
            .extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(rule) = self.inner.get_pre_tokenizer() {
            rule.pre_tokenize(&mut words)?;
        }
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
        unknown: u32,
        encoding: &mut Encoding,
    ) -> tokenizers::Result<()> {
        let full = self.inner.encode(text, false)?;
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

/// Removes BPE dropout, which would make encoding non-deterministic.
fn without_dropout<'a>(file: &Value, json: &'a str) -> Cow<'a, str> {
    if file["model"]["dropout"].is_null() {
        return Cow::Borrowed(json);
    }
    let mut file = file.clone();
    file["model"]["dropout"] = Value::Null;
    Cow::Owned(file.to_string())
}

/// Checks that ids are unique; otherwise the token of an id would depend on hash order.
fn check_unique_ids(ids: &[u32], vocab_size: usize, name: &str) -> Result<(), DataError> {
    let mut used = vec![false; vocab_size];
    let is_repeated = |&&id: &&u32| std::mem::replace(&mut used[id as usize], true);
    match ids.iter().find(is_repeated) {
        Some(id) => Err(DataError::tokenizer(
            name,
            format!("has several tokens with id {id}; hint: use an intact tokenizer.json"),
        )),
        None => Ok(()),
    }
}

/// Checks the ids of added tokens. The crate assigns the next free ids regardless of the file, so a
/// mismatch would silently change ids.
fn check_added_tokens(
    file: &Value,
    inner: &tokenizers::Tokenizer,
    name: &str,
) -> Result<(), DataError> {
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let (content, id) = (
            token["content"].as_str().unwrap_or(""),
            token["id"].as_u64(),
        );
        let assigned = inner.token_to_id(content).map(u64::from);
        if !content.is_empty() && id != assigned {
            let show = |id: Option<u64>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            let reason = format!(
                "token {content:?} has id {} in the file, but the `tokenizers` library assigns {}; hint: make the \
                 ids of added_tokens consecutive, after those of the vocabulary",
                show(id),
                show(assigned)
            );
            return Err(DataError::tokenizer(name, reason));
        }
    }
    Ok(())
}

/// Detects the roles of special tokens by name: the format does not store them.
fn detect_special_tokens(file: &Value, inner: &tokenizers::Tokenizer) -> SpecialTokens {
    let mut special: Vec<(u32, String)> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| (id, token.content))
        .collect();
    special.sort_unstable();
    let model = &file["model"];
    let unk_id = || {
        model["unk_id"]
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
    };
    let unk = model["unk_token"]
        .as_str()
        .and_then(|name| inner.token_to_id(name))
        .or_else(unk_id);
    let named = EOS_NAMES
        .iter()
        .find_map(|name| special.iter().find(|(_, known)| known == name));
    let mut others = special
        .iter()
        .filter(|(id, name)| Some(*id) != unk && !is_non_eos_name(name));
    let only = others.next().filter(|_| others.next().is_none());
    let pad = special.iter().find(|(_, name)| is_padding_name(name));
    SpecialTokens {
        eos: named.or(only).map(|(id, _)| *id),
        unk,
        pad: pad.map(|(id, _)| *id),
    }
}

impl Tokenizer for HuggingFaceTokenizer {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn special_tokens(&self) -> SpecialTokens {
        self.special_tokens
    }

    fn encode(&self, text: &str) -> Encoding {
        let mut encoding = Encoding::default();
        match catch_panics("", || self.inner.encode_fast(text, false)) {
            Ok(found) => encoding.ids = found.get_ids().to_vec(),
            Err(_) => self.encode_lossy(text, &mut encoding),
        }
        if let Some(unknown) = self
            .special_tokens
            .unk
            .filter(|unknown| encoding.ids.contains(unknown))
        {
            // The ids are valid even if recording the unknown parts fails.
            let _ = catch_panics("", || {
                self.record_unknown_spans(text, unknown, &mut encoding)
            });
        }
        encoding
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
        catch_panics("", || self.inner.decode(ids, true)).unwrap_or_default()
    }

    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let ordinary = || self.id_to_token(id).filter(|token| !self.is_special(token));
        self.byte_level.then(|| {
            ordinary()
                .map(|token| token_to_bytes(&token))
                .unwrap_or_default()
        })
    }

    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer> {
        let mut tokenizer = self.clone();
        tokenizer.set_roles(eos, pad);
        Arc::new(tokenizer)
    }

    fn to_json(&self) -> Result<String, DataError> {
        catch_panics("tokenizer.json", || self.inner.to_string(false))
    }
}

/// Returns the bytes of a token in GPT-2's byte alphabet. A token with other characters stands for
/// itself, as in the `ByteLevel` decoder.
fn token_to_bytes(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(char_to_byte).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}
