//! Reading and writing our own tokenizers in Hugging Face's `tokenizer.json` format.

use serde_json::{Map, Value, json};

use super::special::{
    SpecialNames, SpecialVocab, is_mask_name, is_padding_name, is_separator_name,
};
use crate::error::DataError;

/// Returns a complete `tokenizer.json` with `model`.
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

/// Returns a `WordLevel` model with `tokens` as ids 0, 1, 2 ..., followed by the special tokens.
///
/// The format requires the name of an unknown token. Without one, the name has no vocabulary entry,
/// and Python's `tokenizers` rejects text with unknown tokens.
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

/// Returns a BPE model without merges: a token for each entry of `vocab` that is one character.
pub(crate) fn bpe_without_merges(vocab: &Value) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": [],
    })
}

/// Serializes the file.
pub(crate) fn to_text(value: &Value, kind: &str) -> Result<String, DataError> {
    serde_json::to_string_pretty(value).map_err(|error| DataError::tokenizer(kind, error))
}

/// Returns the special tokens of a file written by one of our tokenizers; `None` for other files.
pub(crate) fn special_names(file: &Value) -> Option<SpecialNames> {
    let unknown = file["model"]["unk_token"].as_str();
    let mut names = SpecialNames::default();
    for token in file["added_tokens"].as_array()? {
        let name = token["content"].as_str()?;
        let role = if Some(name) == unknown {
            &mut names.unk
        } else if is_padding_name(name) {
            &mut names.pad
        } else if is_mask_name(name) {
            &mut names.mask
        } else if is_separator_name(name) {
            &mut names.sep
        } else {
            &mut names.eos
        };
        if name.is_empty() || role.replace(name.to_owned()).is_some() {
            return None;
        }
    }
    Some(names)
}

/// Returns the ordinary tokens of a `WordLevel` model in id order; `None` unless ids are 0, 1, 2 ...
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
