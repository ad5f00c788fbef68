//! Validated access to the fields of a JSON request.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use nextword_chat::Json;
use nextword_generate::{Overflow, SamplingConfig};
use serde_json::{Map, Value};

use crate::api_error::ApiError;

/// Maximum completions per prompt (`n`).
const MAX_N: u64 = 16;
/// Maximum number of stop strings.
const MAX_STOPS: usize = 4;
/// Maximum length of a stop string, in characters.
const MAX_STOP_CHARS: usize = 256;
/// Maximum tokens of a completion whose context is shifted (`overflow`: `slide`).
const MAX_SLIDING_TOKENS: usize = 1 << 16;
/// Maximum entries of `logit_bias`.
const MAX_BIASES: usize = 1024;

/// Maximum number of token ids that end a completion.
const MAX_STOP_IDS: usize = 128;

/// Maximum factor on the updates of an adapter.
const MAX_ADAPTER_SCALE: f64 = 2.0;

/// Fields that do not change a completion here.
const WITHOUT_EFFECT: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_prompt",
];
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

/// Parameters shared by completions and chats.
pub(crate) struct CommonParams {
    pub(crate) sampling: SamplingConfig,
    pub(crate) stop: Vec<String>,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) overflow: Overflow,
    pub(crate) allow_sliding: bool,
    pub(crate) ignore_eos: bool,
    /// Further ids that end a completion.
    pub(crate) stop_token_ids: Vec<u32>,
    /// Tokens before a completion can end by itself.
    pub(crate) min_tokens: usize,
    /// Factor on the updates of the adapter.
    pub(crate) adapter_scale: Option<f64>,
}

impl CommonParams {
    pub(crate) fn parse(params: &mut Params<'_>, vocab_size: usize) -> Result<Self, ApiError> {
        params.ignore(&WITHOUT_EFFECT);
        let defaults = SamplingConfig::default();
        let top_p = params.number("top_p", 0.0..=1.0)?;
        let penalty = params.number("repetition_penalty", 0.01..=10.0)?;
        let sampling = SamplingConfig {
            temperature: params.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_k: top_k(params)?,
            // For OpenAI, 0 keeps only the most probable token.
            top_p: top_p.map(|p| p.max(1e-9)),
            min_p: params.number("min_p", 0.0..=1.0)?,
            repetition_penalty: penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: params
                .number("presence_penalty", -2.0..=2.0)?
                .unwrap_or(0.0),
            frequency_penalty: params
                .number("frequency_penalty", -2.0..=2.0)?
                .unwrap_or(0.0),
            logit_bias: logit_bias(params, vocab_size)?,
            seed: seed(params)?,
        };
        sampling
            .validate()
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let stream = params.flag("stream")?;
        let overflow = match params.string("overflow")? {
            None | Some("error") => None,
            Some("slide") => Some(Overflow::Slide),
            Some(_) => {
                let message = "`overflow` must be \"error\" or \"slide\"";
                return Err(ApiError::invalid_field("overflow", message));
            }
        };
        Ok(Self {
            sampling,
            stop: stop_strings(params)?,
            n: params.integer("n", 1..=MAX_N)?.unwrap_or(1),
            include_usage: include_usage(params, stream)?,
            stream,
            overflow: overflow.unwrap_or(Overflow::Stop),
            allow_sliding: overflow.is_some(),
            ignore_eos: params.flag("ignore_eos")?,
            stop_token_ids: stop_token_ids(params, vocab_size)?,
            min_tokens: params
                .integer("min_tokens", 0..=u64::from(u32::MAX))?
                .unwrap_or(0),
            adapter_scale: params.number("adapter_scale", 0.0..=MAX_ADAPTER_SCALE)?,
        })
    }

    /// Maximum tokens of a completion after `prompt` tokens: `requested`, or as many as fit.
    pub(crate) fn token_budget(
        &self,
        param: &str,
        prompt: usize,
        requested: Option<usize>,
        context_length: usize,
    ) -> Result<usize, ApiError> {
        if self.allow_sliding {
            // Bounds completions that would never end.
            return Ok(requested.unwrap_or(context_length).min(MAX_SLIDING_TOKENS));
        }
        // The last generated token is not fed back to the model.
        let room = (context_length + 1).saturating_sub(prompt);
        let fits = prompt <= context_length && requested.is_none_or(|requested| requested <= room);
        if fits {
            return Ok(requested.unwrap_or(room));
        }
        let more = requested.map_or(String::new(), |requested| {
            format!(" and requests {requested} more")
        });
        Err(ApiError::context_length_exceeded(
            param,
            format!(
                "the model's context is {context_length} tokens, but the prompt has {prompt}{more}; hint: shorten the \
                 prompt or lower `max_tokens`"
            ),
        ))
    }
}

/// The number of candidates; `None` for all, which is 0 or -1 in requests.
fn top_k(params: &mut Params<'_>) -> Result<Option<usize>, ApiError> {
    let Some(value) = params.get("top_k") else {
        return Ok(None);
    };
    let k = value
        .as_i64()
        .filter(|k| (-1..=i64::from(u32::MAX)).contains(k));
    let k = k.ok_or_else(|| {
        let message = format!("`top_k` must be an integer from -1 to {}", u32::MAX);
        ApiError::invalid_field("top_k", message)
    })?;
    Ok(usize::try_from(k).ok().filter(|k| *k > 0))
}

fn stop_token_ids(params: &mut Params<'_>, vocab_size: usize) -> Result<Vec<u32>, ApiError> {
    let Some(value) = params.get("stop_token_ids") else {
        return Ok(Vec::new());
    };
    let fail = || {
        let message = format!(
            "`stop_token_ids` must be a list of at most {MAX_STOP_IDS} token ids below {vocab_size}"
        );
        ApiError::invalid_field("stop_token_ids", message)
    };
    let list = value
        .as_array()
        .filter(|list| list.len() <= MAX_STOP_IDS)
        .ok_or_else(fail)?;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < vocab_size).ok_or_else(fail)
    };
    list.iter().map(id).collect()
}

fn seed(params: &mut Params<'_>) -> Result<u64, ApiError> {
    let Some(value) = params.get("seed") else {
        return Ok(random_u64());
    };
    let seed = value
        .as_u64()
        .or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.ok_or_else(|| ApiError::invalid_field("seed", "`seed` must be a 64-bit integer"))
}

/// A hard-to-predict number for seeds and ids.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

fn stop_strings(params: &mut Params<'_>) -> Result<Vec<String>, ApiError> {
    let fail = || {
        let message = format!(
            "`stop` must be a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_CHARS} \
             characters"
        );
        ApiError::invalid_field("stop", message)
    };
    let list = match params.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.as_slice(),
        Some(single) => std::slice::from_ref(single),
    };
    if list.len() > MAX_STOPS {
        return Err(fail());
    }
    let fits = |text: &&str| !text.is_empty() && text.chars().count() <= MAX_STOP_CHARS;
    let text = |value: &Value| value.as_str().filter(fits).map(str::to_owned);
    list.iter()
        .map(|value| text(value).ok_or_else(fail))
        .collect()
}

fn logit_bias(
    params: &mut Params<'_>,
    vocab_size: usize,
) -> Result<std::collections::BTreeMap<u32, f32>, ApiError> {
    let Some(value) = params.get("logit_bias") else {
        return Ok(std::collections::BTreeMap::new());
    };
    let fail = || {
        let message = format!(
            "`logit_bias` must map at most {MAX_BIASES} token ids below {vocab_size} to numbers from -100 to 100"
        );
        ApiError::invalid_field("logit_bias", message)
    };
    let map = value.as_object().ok_or_else(fail)?;
    if map.len() > MAX_BIASES {
        return Err(fail());
    }
    map.iter()
        .map(|(id, bias)| {
            let id = id
                .parse::<u32>()
                .ok()
                .filter(|id| (*id as usize) < vocab_size);
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            Ok((id.ok_or_else(fail)?, bias.ok_or_else(fail)? as f32))
        })
        .collect()
}

fn include_usage(params: &mut Params<'_>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = params.get("stream_options") else {
        return Ok(false);
    };
    let fail = |message: &str| ApiError::invalid_field("stream_options", message);
    if !stream {
        return Err(fail("`stream_options` requires `stream`: true"));
    }
    let fields = options.as_object();
    let fields = fields.ok_or_else(|| fail("`stream_options` must be an object"))?;
    let is_known = |name: &str| ["include_usage", "include_obfuscation"].contains(&name);
    if let Some(name) = fields.keys().find(|name| !is_known(name)) {
        let name: String = name.chars().take(40).collect();
        return Err(fail(&format!(
            "unknown field `{name}` in `stream_options`; hint: remove it"
        )));
    }
    match fields.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(include)) => Ok(*include),
        Some(_) => Err(fail("`include_usage` must be true or false")),
    }
}
