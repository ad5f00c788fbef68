//! Parameters that completions and chats share.

use nextword_generate::{Overflow, SamplingConfig};
use serde_json::Value;

use super::Params;
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
