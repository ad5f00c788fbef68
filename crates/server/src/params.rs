//! Validated access to the fields of a JSON request.

mod common;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use nextword_chat::Json;
use serde_json::{Map, Value};

pub(crate) use self::common::{CommonParams, random_u64};
use crate::api_error::ApiError;

/// Fields of other servers and of OpenAI's API that change a completion and that we do not have.
const KNOWN_ELSEWHERE: [&str; 31] = [
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "chat_template",
    "dry_multiplier",
    "dynatemp_range",
    "early_stopping",
    "grammar",
    "include_stop_str_in_output",
    "input_prefix",
    "json_schema",
    "length_penalty",
    "lora",
    "mirostat",
    "modalities",
    "n_predict",
    "n_probs",
    "prompt_logprobs",
    "reasoning_effort",
    "reasoning_format",
    "repeat_last_n",
    "repeat_penalty",
    "samplers",
    "skip_special_tokens",
    "structural_tag",
    "structured_outputs",
    "truncate_prompt_tokens",
    "typical_p",
    "use_beam_search",
    "verbosity",
    "xtc_probability",
];
/// Similarity above which an unknown field is taken for a misspelled one.
const MIN_SIMILARITY: f64 = 0.85;

/// The fields of a request. Tracks which fields an endpoint accepts; `null` counts as absent.
pub(crate) struct Params<'a> {
    fields: &'a Map<String, Value>,
    /// The JSON text of the request.
    source: Cow<'a, [u8]>,
    /// The source with the order of the keys, once a field needs it.
    ordered: Option<Json>,
    /// Fields that were read or accepted without effect.
    accepted: BTreeSet<&'static str>,
    /// Fields whose presence is an error.
    rejected: BTreeSet<&'static str>,
}

impl<'a> Params<'a> {
    /// `source`: the JSON text of `body`.
    pub(crate) fn new(body: &'a Value, source: impl Into<Cow<'a, [u8]>>) -> Result<Self, ApiError> {
        let fields = body
            .as_object()
            .ok_or_else(|| ApiError::bad_request("the request body must be a JSON object"))?;
        Ok(Self {
            fields,
            source: source.into(),
            ordered: None,
            accepted: BTreeSet::new(),
            rejected: BTreeSet::new(),
        })
    }

    pub(crate) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.accepted.insert(key);
        self.value(key)
    }

    /// The field with the order of the keys of its objects.
    pub(crate) fn ordered(&mut self, key: &'static str) -> Result<Option<Json>, ApiError> {
        if self.get(key).is_none() {
            return Ok(None);
        }
        if self.ordered.is_none() {
            let body = serde_json::from_slice(&self.source).map_err(|e| {
                ApiError::bad_request(format!("invalid JSON in the request body: {e}"))
            })?;
            self.ordered = Some(body);
        }
        let body = self.ordered.as_ref();
        Ok(body.and_then(|body| body.get(key)).cloned())
    }

    /// A list of objects, with the order of their keys. An empty list counts as absent.
    pub(crate) fn objects(&mut self, key: &'static str) -> Result<Option<Vec<Json>>, ApiError> {
        let list = match self.ordered(key)? {
            None => return Ok(None),
            Some(Json::List(list)) => Some(list),
            Some(_) => None,
        };
        let is_object = |item: &Json| matches!(item, Json::Object(_));
        let list = list.filter(|list| list.iter().all(is_object));
        let list = list.ok_or_else(|| {
            ApiError::invalid_field(key, format!("`{key}` must be a list of objects"))
        })?;
        Ok(Some(list).filter(|list| !list.is_empty()))
    }

    /// One of a few names.
    pub(crate) fn choice(
        &mut self,
        key: &'static str,
        names: &[&'static str],
    ) -> Result<Option<&'static str>, ApiError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let name = names.iter().find(|name| value.as_str() == Some(**name));
        name.map(|name| Some(*name)).ok_or_else(|| {
            let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
            let names = names.join(" or ");
            ApiError::invalid_field(key, format!("only {names} is supported as `{key}`"))
        })
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Result<Option<&'a str>, ApiError> {
        let value = self.get(key);
        let text = |value: &'a Value| {
            let text = value.as_str();
            text.ok_or_else(|| ApiError::invalid_field(key, format!("`{key}` must be a string")))
        };
        value.map(text).transpose()
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> Result<bool, ApiError> {
        Ok(self.optional_flag(key)?.unwrap_or(false))
    }

    pub(crate) fn optional_flag(&mut self, key: &'static str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some)
            .ok_or_else(|| ApiError::invalid_field(key, format!("`{key}` must be true or false")))
    }

    pub(crate) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            let (min, max) = (range.start(), range.end());
            ApiError::invalid_field(key, format!("`{key}` must be a number from {min} to {max}"))
        })
    }

    pub(crate) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_u64().filter(|number| range.contains(number));
        number.map(|number| Some(number as usize)).ok_or_else(|| {
            let (min, max) = (range.start(), range.end());
            ApiError::invalid_field(
                key,
                format!("`{key}` must be an integer from {min} to {max}"),
            )
        })
    }

    /// Accepts fields that have no effect here.
    pub(crate) fn ignore(&mut self, keys: &[&'static str]) {
        self.accepted.extend(keys);
    }

    /// Rejects unsupported fields that would change the completion.
    pub(crate) fn reject(&mut self, keys: &[&'static str]) -> Result<(), ApiError> {
        self.rejected.extend(keys);
        for key in keys {
            let present = self.value(key).filter(|value| match value {
                Value::Array(list) => !list.is_empty(),
                Value::String(text) => !text.is_empty(),
                Value::Bool(flag) => *flag,
                _ => true,
            });
            if present.is_some() {
                let message = format!("`{key}` is not supported; hint: remove it");
                return Err(ApiError::invalid_field(key, message));
            }
        }
        Ok(())
    }

    /// The fields that the endpoint accepts, as far as they were parsed.
    #[cfg(test)]
    pub(crate) fn accepted(&self) -> &BTreeSet<&'static str> {
        &self.accepted
    }

    /// Rejects fields that the endpoint does not have.
    pub(crate) fn reject_unknown(&self) -> Result<(), ApiError> {
        let is_known = |key: &str| self.accepted.contains(key) || self.rejected.contains(key);
        let mut keys = self.fields.iter().filter(|(_, value)| !value.is_null());
        let Some((key, _)) = keys.find(|(key, _)| !is_known(key)) else {
            return Ok(());
        };
        let shown: String = key.chars().take(40).collect();
        if KNOWN_ELSEWHERE.contains(&key.as_str()) || key.starts_with("guided_") {
            let message = format!("`{shown}` is not supported; hint: remove it");
            return Err(ApiError::invalid_field(&shown, message));
        }
        let lower = shown.to_lowercase();
        let similarity = |name: &str| strsim::jaro_winkler(&lower, name);
        let nearest = self
            .accepted
            .iter()
            .max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let hint = match nearest.filter(|name| similarity(name) >= MIN_SIMILARITY) {
            Some(name) => format!("did you mean `{name}`?"),
            None => "remove it; /openapi.json lists the fields".to_owned(),
        };
        Err(ApiError::invalid_field(
            &shown,
            format!("unknown field `{shown}`; hint: {hint}"),
        ))
    }
}
