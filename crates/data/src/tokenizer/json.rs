//! The parts of Hugging Face's `tokenizer.json` that our own tokenizers write.

use serde_json::{Map, Value, json};

use super::special::{SpecialNames, SpecialVocab, is_padding_name};
use crate::error::DataError;

/// A whole file around `model`.
pub(crate) fn tokenizer_file(
    special: &SpecialVocab,
    pre_tokenizer: &Value,
    decoder: &Value,
    model: &Value,
) -> Value {
    let added: Vec<Value> = special
        .iter()
        .map(|(id, name)| {
            json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    })
}

/// A `WordLevel` model with `tokens` as ids 0, 1, 2 ... and the special tokens after them.
///
/// The format demands the name of an unknown token; where there is none, the name stands for no
/// entry, and Python's `tokenizers` then refuses a text with unknown tokens.
pub(crate) fn word_level<'a>(
    tokens: impl Iterator<Item = &'a str>,
    special: &SpecialVocab,
) -> Value {
    let mut vocab = Map::new();
    for (id, token) in tokens.enumerate() {
        vocab.insert(token.to_owned(), json!(id));
    }
    for (id, name) in special.iter() {
        vocab.insert(name.to_owned(), json!(id));
    }
    let unknown = special.names().unk.as_deref().unwrap_or("<unk>");
    json!({"type": "WordLevel", "vocab": vocab, "unk_token": unknown})
}

/// The file as text.
pub(crate) fn to_text(value: &Value, kind: &str) -> Result<String, DataError> {
    serde_json::to_string_pretty(value).map_err(|error| DataError::tokenizer(kind, error))
}

/// The special tokens of a file that one of our tokenizers wrote; `None` if it is not one of ours.
pub(crate) fn special_names(file: &Value) -> Option<SpecialNames> {
    let unknown = file["model"]["unk_token"].as_str();
    let mut names = SpecialNames::default();
    for token in file["added_tokens"].as_array()? {
        let name = token["content"].as_str()?;
        let role = if Some(name) == unknown {
            &mut names.unk
        } else if is_padding_name(name) {
            &mut names.pad
        } else {
            &mut names.eos
        };
        if name.is_empty() || role.replace(name.to_owned()).is_some() {
            return None;
        }
    }
    Some(names)
}

/// The ordinary tokens of a `WordLevel` model in id order; `None` unless ids are 0, 1, 2 ...
pub(crate) fn word_level_tokens(file: &Value, names: &SpecialNames) -> Option<Vec<String>> {
    let vocab = file["model"]["vocab"].as_object()?;
    let mut tokens = vec![None; vocab.len().checked_sub(names.count())?];
    for (token, id) in vocab
        .iter()
        .filter(|(token, _)| !names.in_order().any(|name| name == *token))
    {
        let entry = tokens.get_mut(usize::try_from(id.as_u64()?).ok()?)?;
        *entry = Some(token.clone());
    }
    tokens.into_iter().collect()
}
