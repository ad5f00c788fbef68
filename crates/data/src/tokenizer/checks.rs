//! Checks of a `tokenizer.json` beyond those of the `tokenizers` library.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper};

use super::regex::{BoundedNormalizer, exhausted_by, with_budget};
use crate::error::DataError;

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

/// Removes BPE dropout, which would make encoding non-deterministic.
pub(crate) fn without_dropout<'a>(file: &Value, json: &'a str) -> Cow<'a, str> {
    if file["model"]["dropout"].is_null() {
        return Cow::Borrowed(json);
    }
    let mut file = file.clone();
    file["model"]["dropout"] = Value::Null;
    Cow::Owned(file.to_string())
}

/// Checks that the normalizer can be applied to the added tokens, which the library does
/// without bounds when it loads the file.
pub(crate) fn check_normalized_tokens(file: &Value, name: &str) -> Result<(), DataError> {
    if file["normalizer"].is_null() {
        return Ok(());
    }
    let parsed = catch_panics(name, || {
        let parsed: NormalizerWrapper = serde_json::from_value(file["normalizer"].clone())?;
        Ok(BoundedNormalizer::new(&parsed))
    });
    let Ok(normalizer) = parsed else {
        return Ok(()); // The library reports what is wrong.
    };
    let normalizer = normalizer.map_err(|reason| DataError::tokenizer(name, reason))?;
    let tokens = file["added_tokens"].as_array().into_iter().flatten();
    let tokens = tokens.filter_map(|token| token["content"].as_str());
    let tokens: Vec<&str> = tokens.collect();
    let bytes = tokens.iter().map(|token| token.len()).sum();
    with_budget(bytes, || {
        for token in tokens {
            let _ = catch_panics(name, || {
                normalizer.normalize(&mut NormalizedString::from(token))
            });
        }
        exhausted_by().map_or(Ok(()), |reason| {
            let reason = format!("{reason} for the added tokens; hint: use another tokenizer.json");
            Err(DataError::tokenizer(name, reason))
        })
    })
}

/// Checks that ids are unique; otherwise the token of an id would depend on hash order.
pub(crate) fn check_unique_ids(
    ids: &[u32],
    vocab_size: usize,
    name: &str,
) -> Result<(), DataError> {
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
pub(crate) fn check_added_tokens(
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
