//! Parses JSON requests into sequences for the engine. Everything is validated before any work or memory
//! is spent on a completion.

use std::sync::Arc;

use nextword_chat::{ChatError, RenderOptions, Role};
use nextword_data::Encoding;
use nextword_generate::{BatchRequest, TextOptions, max_prompt_len, truncate_left};
use nextword_model::{Architecture, RowAdapter};
use serde_json::Value;

use crate::api_error::ApiError;
use crate::architecture::{check_architecture, check_echo, check_source};
use crate::engine::Sequence;
use crate::loaded_model::Model;
use crate::messages::Conversation;
use crate::params::{CommonParams, Params};
use crate::response::{Endpoint, ResponseBuilder};

/// Maximum completions per request.
const MAX_SEQUENCES: usize = 128;
/// Maximum log-probabilities of one response (tokens times alternatives). Each takes about 100 bytes until
/// it is sent.
const MAX_RESPONSE_LOGPROBS: usize = 1 << 18;
/// Default `max_tokens` of `/v1/completions`.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A validated request.
pub(crate) struct ParsedRequest {
    pub(crate) response: ResponseBuilder,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) stream: bool,
}

/// A prompt as text and as token ids.
struct Prompt {
    text: String,
    ids: Vec<u32>,
    /// What of the text is not in the vocabulary; its ids are empty.
    unknown: Encoding,
}

impl Prompt {
    /// Encodes a prompt of the field `param`.
    fn encode(model: &Model, param: &str, text: String) -> Result<Self, ApiError> {
        let encoding = model.generator.encode(&text);
        let encoding = encoding.map_err(|e| ApiError::invalid_field(param, e.to_string()))?;
        Ok(Self::new(text, encoding))
    }

    fn new(text: String, mut encoding: Encoding) -> Self {
        Self {
            text,
            ids: std::mem::take(&mut encoding.ids),
            unknown: encoding,
        }
    }

    /// The character offset in the text at which each token begins. `None` if the text is that of the tokens (without
    /// unknown parts, special tokens and white space that is lost), or if the offsets are not known.
    fn token_offsets(&self, model: &Model) -> Option<Vec<usize>> {
        let tokenizer = model.tokenizer();
        let (encoding, ranges) = tokenizer.encode_with_ranges(&self.text);
        // A BOS token, or the token that an empty prompt begins with, may precede the text's.
        let before = self.ids.strip_suffix(encoding.ids.as_slice())?.len();
        if encoding.unknown_count == 0 && tokenizer.decode(&encoding.ids) == self.text {
            return None;
        }
        let mut offsets = vec![0; before];
        let (mut bytes, mut characters) = (0, 0);
        for range in ranges {
            let start = range?.start;
            // Partial characters begin where the character does.
            let start = self.text.floor_char_boundary(start).max(bytes);
            characters += self.text.get(bytes..start)?.chars().count();
            bytes = start;
            offsets.push(characters);
        }
        Some(offsets)
    }
}

/// Parses the body of `/v1/completions`.
pub(crate) fn completion(
    model: Arc<Model>,
    params: &mut Params<'_>,
) -> Result<ParsedRequest, ApiError> {
    check_architecture(&model)?;
    params.reject(&["suffix"])?;
    let common = CommonParams::parse(params, model.config().vocab_size)?;
    let echo = params.flag("echo")?;
    let logprobs = params.integer("logprobs", 0..=5)?;
    let best_of = params.integer("best_of", 1..=16)?;
    if best_of.is_some_and(|best_of| best_of != common.n) {
        let message = "`best_of` must equal `n`; hint: remove `best_of`";
        return Err(ApiError::invalid_field("best_of", message));
    }
    let requested = params.integer("max_tokens", 0..=u64::from(u32::MAX))?;
    let prompts = prompts(&model, params.get("prompt"))?;
    let settings = Settings {
        max_tokens: Some(requested.unwrap_or(DEFAULT_MAX_TOKENS)),
        is_explicit: requested.is_some(),
        echo,
        logprobs,
        endpoint: Endpoint::Completion,
        param: "prompt",
    };
    finish(model, &common, &settings, prompts)
}

/// Parses the body of `/v1/chat/completions`.
pub(crate) fn chat(model: Arc<Model>, params: &mut Params<'_>) -> Result<ParsedRequest, ApiError> {
    check_architecture(&model)?;
    params.reject(&["functions", "audio", "prediction", "web_search_options"])?;
    if let Some(format) = params.get("response_format")
        && format.get("type").and_then(Value::as_str) != Some("text")
    {
        let message = "only the `response_format` {\"type\": \"text\"} is supported: completions are not held to a \
                       schema or grammar";
        return Err(ApiError::invalid_field("response_format", message));
    }
    let common = CommonParams::parse(params, model.config().vocab_size)?;
    let conversation = Conversation::parse(params)?;
    let logprobs = params.flag("logprobs")?;
    let top = params.integer("top_logprobs", 0..=20)?;
    if top.is_some() && !logprobs {
        let message = "`top_logprobs` requires `logprobs`: true";
        return Err(ApiError::invalid_field("top_logprobs", message));
    }
    let limit = u64::from(u32::MAX);
    let max_completion_tokens = params.integer("max_completion_tokens", 1..=limit)?;
    let requested = max_completion_tokens.or(params.integer("max_tokens", 1..=limit)?);
    let prompt = format_conversation(&model, &conversation)?;
    let settings = Settings {
        max_tokens: requested,
        is_explicit: requested.is_some(),
        echo: false,
        logprobs: logprobs.then(|| top.unwrap_or(0)),
        endpoint: Endpoint::Chat,
        param: "messages",
    };
    finish(model, &common, &settings, vec![prompt])
}

/// Settings that differ between the two endpoints.
struct Settings {
    max_tokens: Option<usize>,
    /// Whether the client set `max_tokens`.
    is_explicit: bool,
    echo: bool,
    logprobs: Option<usize>,
    endpoint: Endpoint,
    param: &'static str,
}

impl Settings {
    /// `max_tokens` for each of `count` completions after `scored` prompt tokens, checked against the
    /// maximum response size. A default is lowered to fit.
    fn bounded_max_tokens(
        &self,
        max_tokens: usize,
        scored: usize,
        count: usize,
    ) -> Result<usize, ApiError> {
        let logprobs_per_token = self.logprobs.map_or(1, |top| top + 1);
        let max_total = MAX_RESPONSE_LOGPROBS / (count.max(1) * logprobs_per_token);
        if scored.saturating_add(max_tokens) <= max_total {
            return Ok(max_tokens);
        }
        if !self.is_explicit && scored < max_total {
            return Ok(max_total - scored);
        }
        let tokens = scored.saturating_add(max_tokens);
        let message = format!(
            "{count} completions x {tokens} tokens x {logprobs_per_token} log-probabilities exceed the maximum of \
             {MAX_RESPONSE_LOGPROBS} per response; hint: lower `max_tokens`, `n` or `logprobs`"
        );
        Err(ApiError::invalid_field("max_tokens", message))
    }
}

fn finish(
    model: Arc<Model>,
    common: &CommonParams,
    settings: &Settings,
    mut prompts: Vec<Prompt>,
) -> Result<ParsedRequest, ApiError> {
    let count = prompts.len().saturating_mul(common.n);
    if count > MAX_SEQUENCES {
        let message =
            format!("{count} completions exceed the maximum of {MAX_SEQUENCES} per request");
        return Err(ApiError::invalid_field(settings.param, message));
    }
    let adapter = requested_adapter(&model, common.adapter_scale)?;
    let context_length = model.config().context_length;
    let mut stop_ids = model.generator.stop_ids();
    stop_ids.retain(|_| !common.ignore_eos);
    stop_ids.extend(&common.stop_token_ids);
    stop_ids.extend(model.generator.special_stop_ids(&common.stop));
    let bos_id = model.generator.first_id();
    let score_prompt = settings.echo && settings.logprobs.is_some();
    check_echo(&model, score_prompt)?;
    let has_encoder = model.config().has_encoder();
    let mut sequences = Vec::with_capacity(count);
    let sampling = model.generator.sampling(&common.sampling);
    for prompt in &mut prompts {
        let max_len = max_prompt_len(context_length);
        if has_encoder {
            check_source(settings.param, prompt.ids.len(), context_length)?;
        } else if common.allow_sliding && truncate_left(&mut prompt.ids, bos_id, max_len) > 0 {
            // `echo` returns the truncated prompt that the model received.
            prompt.text = model.tokenizer().decode(&prompt.ids);
        }
        // The target of an encoder-decoder model begins with a token of its own.
        let len = if has_encoder { 1 } else { prompt.ids.len() };
        let mut requested = settings.max_tokens;
        if !settings.is_explicit
            && let Some(default) = requested
        {
            // A default is lowered to what still fits.
            let room = (context_length + 1).saturating_sub(len).max(1);
            requested = Some(if common.allow_sliding {
                default
            } else {
                default.min(room)
            });
        }
        let max_tokens = common.token_budget(settings.param, len, requested, context_length)?;
        let max_tokens =
            settings.bounded_max_tokens(max_tokens, if score_prompt { len } else { 0 }, count)?;
        if common.min_tokens > max_tokens {
            let minimum = common.min_tokens;
            let message = format!(
                "`min_tokens` is {minimum}, but a completion can have at most {max_tokens} tokens"
            );
            return Err(ApiError::invalid_field("min_tokens", message));
        }
        for _ in 0..common.n {
            sequences.push(Sequence {
                request: BatchRequest {
                    prompt: prompt.ids.clone(),
                    sampling: sampling.clone(),
                    max_tokens,
                    stop_ids: stop_ids.clone(),
                    min_tokens: common.min_tokens,
                    overflow: common.overflow,
                    bos_id,
                    sequence: sequences.len() as u64,
                    top_logprobs: settings.logprobs,
                    score_prompt,
                    adapter: adapter.clone(),
                },
                stop: common.stop.clone(),
            });
        }
    }
    let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
    let mut unknown = Encoding::default();
    for prompt in &prompts {
        unknown.add_unknown(&prompt.unknown);
    }
    let offsets = prompts.iter().filter(|_| score_prompt);
    let offsets = offsets.map(|prompt| prompt.token_offsets(&model)).collect();
    let echo = prompts.into_iter().map(|prompt| prompt.text);
    let echo = settings.echo.then(|| echo.collect());
    let response = ResponseBuilder::new(
        model,
        settings.endpoint,
        common,
        settings.logprobs,
        prompt_tokens,
        echo,
    );
    Ok(ParsedRequest {
        response: response
            .with_choice_count(sequences.len())
            .with_unknown(unknown, offsets),
        sequences,
        stream: common.stream,
    })
}

/// The adapter of `model`, if it is one, with the updates times `scale`.
fn requested_adapter(model: &Model, scale: Option<f64>) -> Result<Option<RowAdapter>, ApiError> {
    match (&model.adapter, scale) {
        (None, None) => Ok(None),
        (None, Some(_)) if model.parent.is_some() => Err(ApiError::invalid_field(
            "adapter_scale",
            "`adapter_scale` needs an adapter that shares the weights of its base, and this one has weights of its own: \
             it uses DoRA or `modules_to_save`; hint: remove it, or name an adapter of LoRA",
        )),
        (None, Some(_)) => Err(ApiError::invalid_field(
            "adapter_scale",
            "`adapter_scale` needs an adapter as `model`, and this model is none; hint: remove it, or name one of the \
             models with a `parent` in /v1/models",
        )),
        (Some(adapter), scale) => {
            let scale = scale.unwrap_or(1.0);
            Ok(Some(adapter.clone().with_factor(scale as f32)))
        }
    }
}

/// The prompts of a completion: a string, a list of strings, ids, or a list of lists of ids.
fn prompts(model: &Model, value: Option<&Value>) -> Result<Vec<Prompt>, ApiError> {
    let fail = || {
        let message = "`prompt` must be a string, a list of strings, a list of token ids, or a list of lists of \
                       token ids";
        ApiError::invalid_field("prompt", message)
    };
    let value = value.ok_or_else(fail)?;
    if let Some(text) = value.as_str() {
        return Ok(vec![text_prompt(model, text)?]);
    }
    let list = value
        .as_array()
        .filter(|list| !list.is_empty())
        .ok_or_else(fail)?;
    if list.iter().all(Value::is_u64) {
        return Ok(vec![id_prompt(model, list)?]);
    }
    if list.len() > MAX_SEQUENCES {
        let message = format!("`prompt` may contain at most {MAX_SEQUENCES} prompts");
        return Err(ApiError::invalid_field("prompt", message));
    }
    list.iter()
        .map(|prompt| match prompt {
            Value::String(text) => text_prompt(model, text),
            Value::Array(ids) if ids.iter().all(Value::is_u64) => id_prompt(model, ids),
            _ => Err(fail()),
        })
        .collect()
}

/// The prompt of a text. Decoders continue it as it is; prefix and encoder-decoder models read it as a source, in
/// the format that they were trained with.
fn text_prompt(model: &Model, text: &str) -> Result<Prompt, ApiError> {
    if model.config().architecture == Architecture::Decoder {
        return Prompt::encode(model, "prompt", text.to_owned());
    }
    let encoding = model.generator.encode_prompt(text, &TextOptions::default());
    let encoding = encoding.map_err(|e| ApiError::invalid_field("prompt", e.to_string()))?;
    Ok(Prompt::new(text.to_owned(), encoding))
}

fn id_prompt(model: &Model, list: &[Value]) -> Result<Prompt, ApiError> {
    let ids = parse_token_ids("prompt", model, list)?;
    if ids.is_empty() {
        return Err(ApiError::invalid_field("prompt", "the prompt is empty"));
    }
    let text = model.tokenizer().decode(&ids);
    let unknown = Encoding::default();
    Ok(Prompt { text, ids, unknown })
}

/// Parses token ids and checks them against the vocabulary.
pub(crate) fn parse_token_ids(
    param: &'static str,
    model: &Model,
    list: &[Value],
) -> Result<Vec<u32>, ApiError> {
    let vocab_size = model.config().vocab_size;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|id| (*id as usize) < vocab_size);
        id.ok_or_else(|| {
            ApiError::invalid_field(
                param,
                format!("token ids must be non-negative integers below {vocab_size}"),
            )
        })
    };
    list.iter().map(id).collect()
}

/// The prompt of a conversation, and its ids.
pub(crate) fn encode_conversation(
    model: &Model,
    conversation: &Conversation,
) -> Result<(String, Encoding), ApiError> {
    let Prompt { text, ids, unknown } = format_conversation(model, conversation)?;
    Ok((text, Encoding { ids, ..unknown }))
}

/// Formats a conversation for the model with its chat template. Without one, a single user message is
/// formatted with the prompt template of the model card.
fn format_conversation(model: &Model, conversation: &Conversation) -> Result<Prompt, ApiError> {
    let messages_error = |e: &ChatError| {
        let (param, message) = match e {
            // Do not reveal the file's path to clients.
            ChatError::Template { problem, .. } => (
                "messages",
                format!("this model's chat template cannot be used: {problem}"),
            ),
            ChatError::Unsupported { option, .. } => (request_field(option), e.to_string()),
            other => ("messages", other.to_string()),
        };
        ApiError::invalid_field(param, message)
    };
    let (messages, options) = (&conversation.messages[..], conversation.options());
    if let Some(prompts) = model.prompts.as_ref().map_err(messages_error)? {
        let prompt = prompts.encode(messages, &options);
        let prompt = prompt.map_err(|e| messages_error(&e))?;
        return Ok(Prompt::new(prompt.text, prompt.encoding));
    }
    if options != RenderOptions::default() {
        let param = first_option(&options);
        let message = format!(
            "`{param}` needs a chat template, which this model does not have; hint: remove it"
        );
        return Err(ApiError::invalid_field(param, message));
    }
    match (&model.generator.card().prompt_template, messages) {
        (Some(_), [message]) if message.role() == Role::User => {
            let options = TextOptions::default(); // These use the model's own template.
            let prompt = model.generator.format_prompt(&message.text(), &options);
            let text = prompt.map_err(|e| ApiError::invalid_field("messages", e.to_string()))?;
            Prompt::encode(model, "messages", text)
        }
        (Some(_), _) => Err(ApiError::invalid_field(
            "messages",
            "this model's prompt template accepts only a single user message; hint: to support conversations, add a \
             chat_template.jinja to the model folder",
        )),
        (None, _) => Err(ApiError::invalid_field(
            "messages",
            "this model has no chat template; hint: use /v1/completions, or add a chat_template.jinja to the model \
             folder and restart the server",
        )),
    }
}

/// The field of a chat request for a field of [`RenderOptions`].
fn request_field(option: &'static str) -> &'static str {
    match option {
        "variables" => "chat_template_kwargs",
        same => same,
    }
}

/// The first field of a chat request that only a chat template supports.
fn first_option(options: &RenderOptions<'_>) -> &'static str {
    if options.tools.is_some() {
        "tools"
    } else if options.documents.is_some() {
        "documents"
    } else if !options.variables.is_empty() {
        "chat_template_kwargs"
    } else if options.continue_final_message {
        "continue_final_message"
    } else {
        "add_generation_prompt"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_size_is_bounded_even_for_echoed_prompts() {
        let settings = |is_explicit| Settings {
            max_tokens: None,
            is_explicit,
            echo: true,
            logprobs: Some(5),
            endpoint: Endpoint::Completion,
            param: "prompt",
        };
        assert_eq!(settings(true).bounded_max_tokens(0, 2000, 16), Ok(0));
        assert!(settings(true).bounded_max_tokens(0, 4096, 16).is_err());
        assert!(settings(false).bounded_max_tokens(16, 4096, 16).is_err());
        assert_eq!(
            settings(false).bounded_max_tokens(1000, 2000, 16),
            Ok(MAX_RESPONSE_LOGPROBS / 96 - 2000)
        );
    }
}
