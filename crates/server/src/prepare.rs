//! From a request's JSON to sequences for the engine; nothing is computed or allocated for an answer
//! before everything was checked.

use std::sync::Arc;

use nextword_generate::{BatchRequest, PROMPT, longest_prompt, shorten};
use serde_json::Value;

use crate::ServerError;
use crate::api_error::ApiError;
use crate::chat_template::{Message, read_messages};
use crate::engine::Sequence;
use crate::params::{Common, Params};
use crate::reply::{Form, Reply};
use crate::served::Model;

/// Answers of one request.
const MAX_SEQUENCES: usize = 128;
/// Numbers of one reply: its tokens, each as often as tokens are told in its place. While they wait
/// to be sent, each takes about a hundred bytes.
const MAX_NUMBERS: usize = 1 << 18;
/// Tokens of an answer to a completion that says nothing about it.
const DEFAULT_TOKENS: usize = 16;

/// A request that was read.
pub(crate) struct Prepared {
    pub(crate) reply: Reply,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) stream: bool,
    pub(crate) ignored: String,
}

/// A prompt as text and ids.
struct Prompt {
    text: String,
    ids: Vec<u32>,
}

/// Reads the body of `/v1/completions`.
pub(crate) fn completion(model: Arc<Model>, body: &Value) -> Result<Prepared, ApiError> {
    let mut params = Params::new(body)?;
    params.ignore(&["model"]);
    params.refuse(&["suffix"])?;
    let common = Common::read(&mut params, model.config().vocab_size)?;
    let echo = params.flag("echo")?;
    let logprobs = params.integer("logprobs", 0..=5)?;
    let best_of = params.integer("best_of", 1..=16)?;
    if best_of.is_some_and(|best_of| best_of != common.n) {
        let message = "`best_of` other than `n` is not supported here; hint: leave it out";
        return Err(ApiError::field("best_of", message));
    }
    let wanted = params.integer("max_tokens", 0..=u64::from(u32::MAX))?;
    let prompts = prompts(&model, params.get("prompt"))?;
    let settings = Settings {
        max_tokens: Some(wanted.unwrap_or(DEFAULT_TOKENS)),
        given: wanted.is_some(),
        echo,
        logprobs,
        form: Form::Completion,
        param: "prompt",
    };
    finish(model, &common, &settings, prompts, &params)
}

/// Reads the body of `/v1/chat/completions`.
pub(crate) fn chat(model: Arc<Model>, body: &Value) -> Result<Prepared, ApiError> {
    let mut params = Params::new(body)?;
    params.ignore(&[
        "model",
        "tool_choice",
        "parallel_tool_calls",
        "function_call",
    ]);
    params.refuse(&[
        "tools",
        "functions",
        "audio",
        "prediction",
        "web_search_options",
    ])?;
    if let Some(format) = params.get("response_format")
        && format.get("type").and_then(Value::as_str) != Some("text")
    {
        let message = "only the `response_format` {\"type\": \"text\"} is supported here";
        return Err(ApiError::field("response_format", message));
    }
    let common = Common::read(&mut params, model.config().vocab_size)?;
    let messages = read_messages(params.get("messages"))?;
    let logprobs = params.flag("logprobs")?;
    let top = params.integer("top_logprobs", 0..=20)?;
    if top.is_some() && !logprobs {
        let message = "`top_logprobs` needs `logprobs`: true";
        return Err(ApiError::field("top_logprobs", message));
    }
    let limit = u64::from(u32::MAX);
    let newer = params.integer("max_completion_tokens", 1..=limit)?;
    let wanted = newer.or(params.integer("max_tokens", 1..=limit)?);
    let text = conversation(&model, &messages)?;
    let ids = model.generator.encode(&text).ids;
    let settings = Settings {
        max_tokens: wanted,
        given: wanted.is_some(),
        echo: false,
        logprobs: logprobs.then(|| top.unwrap_or(0)),
        form: Form::Chat,
        param: "messages",
    };
    finish(
        model,
        &common,
        &settings,
        vec![Prompt { text, ids }],
        &params,
    )
}

/// What the two interfaces read differently.
struct Settings {
    max_tokens: Option<usize>,
    /// Whether the client named that number.
    given: bool,
    echo: bool,
    logprobs: Option<usize>,
    form: Form,
    param: &'static str,
}

impl Settings {
    /// `max_tokens` for each of `count` answers behind `scored` tokens of a prompt, if the reply is then
    /// of a size that can be held. What the client did not name is lowered.
    fn bounded(&self, max_tokens: usize, scored: usize, count: usize) -> Result<usize, ApiError> {
        let told = self.logprobs.map_or(1, |top| top + 1);
        let held = MAX_NUMBERS / (count.max(1) * told);
        if scored.saturating_add(max_tokens) <= held {
            return Ok(max_tokens);
        }
        if !self.given && scored < held {
            return Ok(held - scored);
        }
        let tokens = scored.saturating_add(max_tokens);
        let message = format!(
            "{count} answers x {tokens} tokens x {told} told for each are more than the {MAX_NUMBERS} of one reply; \
             hint: lower `max_tokens`, `n` or the number of `logprobs`"
        );
        Err(ApiError::field("max_tokens", message))
    }
}

fn finish(
    model: Arc<Model>,
    common: &Common,
    settings: &Settings,
    mut prompts: Vec<Prompt>,
    params: &Params<'_>,
) -> Result<Prepared, ApiError> {
    let count = prompts.len().saturating_mul(common.n);
    if count > MAX_SEQUENCES {
        let message = format!("{count} answers are more than the {MAX_SEQUENCES} of one request");
        return Err(ApiError::field(settings.param, message));
    }
    let context_length = model.config().context_length;
    let mut stop_ids = model.generator.stop_ids();
    stop_ids.retain(|_| !common.ignore_eos);
    let first_id = model.generator.card().bos_id;
    let score_prompt = settings.echo && settings.logprobs.is_some();
    let mut sequences = Vec::with_capacity(count);
    for prompt in &mut prompts {
        let longest = longest_prompt(context_length);
        if common.may_slide && shorten(&mut prompt.ids, first_id, longest) > 0 {
            // What is repeated is what the model was shown.
            prompt.text = model.tokenizer().decode(&prompt.ids);
        }
        let len = prompt.ids.len();
        let mut wanted = settings.max_tokens;
        if !settings.given
            && let Some(default) = wanted
        {
            // A default is no demand.
            let room = (context_length + 1).saturating_sub(len).max(1);
            wanted = Some(if common.may_slide {
                default
            } else {
                default.min(room)
            });
        }
        let max_tokens = common.room(settings.param, len, wanted, context_length)?;
        let max_tokens = settings.bounded(max_tokens, if score_prompt { len } else { 0 }, count)?;
        for _ in 0..common.n {
            sequences.push(Sequence {
                request: BatchRequest {
                    prompt: prompt.ids.clone(),
                    sampling: common.sampling.clone(),
                    max_tokens,
                    stop_ids: stop_ids.clone(),
                    overflow: common.overflow,
                    first_id,
                    sequence: sequences.len() as u64,
                    top: settings.logprobs,
                    score_prompt,
                },
                stop: common.stop.clone(),
            });
        }
    }
    let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
    let echo = prompts.into_iter().map(|prompt| prompt.text);
    let echo = settings.echo.then(|| echo.collect());
    let reply = Reply::new(
        model,
        settings.form,
        common,
        settings.logprobs,
        prompt_tokens,
        echo,
    );
    Ok(Prepared {
        reply: reply.of(sequences.len()),
        sequences,
        stream: common.stream,
        ignored: params.unknown(),
    })
}

/// The prompts of a completion: a string, a list of strings, ids, or a list of lists of ids.
fn prompts(model: &Model, value: Option<&Value>) -> Result<Vec<Prompt>, ApiError> {
    let fail = || {
        let message = "`prompt` must be a string, a list of strings, a list of token ids, or a list of such lists";
        ApiError::field("prompt", message)
    };
    let value = value.ok_or_else(fail)?;
    if let Some(text) = value.as_str() {
        return Ok(vec![text_prompt(model, text)]);
    }
    let list = value
        .as_array()
        .filter(|list| !list.is_empty())
        .ok_or_else(fail)?;
    if list.iter().all(Value::is_u64) {
        return Ok(vec![id_prompt(model, list)?]);
    }
    if list.len() > MAX_SEQUENCES {
        let message = format!("`prompt` may hold {MAX_SEQUENCES} prompts at most");
        return Err(ApiError::field("prompt", message));
    }
    list.iter()
        .map(|one| match one {
            Value::String(text) => Ok(text_prompt(model, text)),
            Value::Array(ids) if ids.iter().all(Value::is_u64) => id_prompt(model, ids),
            _ => Err(fail()),
        })
        .collect()
}

fn text_prompt(model: &Model, text: &str) -> Prompt {
    Prompt {
        text: text.to_owned(),
        ids: model.generator.encode(text).ids,
    }
}

fn id_prompt(model: &Model, list: &[Value]) -> Result<Prompt, ApiError> {
    let ids = read_ids("prompt", model, list)?;
    if ids.is_empty() {
        return Err(ApiError::field("prompt", "the prompt holds no token"));
    }
    let text = model.tokenizer().decode(&ids);
    Ok(Prompt { text, ids })
}

/// Token ids that the model has.
pub(crate) fn read_ids(
    param: &'static str,
    model: &Model,
    list: &[Value],
) -> Result<Vec<u32>, ApiError> {
    let vocab_size = model.config().vocab_size;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|id| (*id as usize) < vocab_size);
        id.ok_or_else(|| {
            ApiError::field(
                param,
                format!("token ids must be whole numbers below {vocab_size}"),
            )
        })
    };
    list.iter().map(id).collect()
}

/// A conversation as the model is shown it: by the record's chat template; without one a single
/// message of the user by the card's prompt template.
fn conversation(model: &Model, messages: &[Message]) -> Result<String, ApiError> {
    let fail = |e: &ServerError| {
        let message = match e {
            // Where the file lies is no client's business.
            ServerError::Template { problem, .. } => {
                format!("this model's chat template cannot be used: {problem}")
            }
            other => other.to_string(),
        };
        ApiError::field("messages", message)
    };
    if let Some(template) = model.template.as_ref().map_err(fail)? {
        return template.render(messages).map_err(|e| fail(&e));
    }
    match (&model.generator.card().prompt_template, messages) {
        (Some(template), [one]) if one.role == "user" => Ok(template.replace(PROMPT, &one.content)),
        (Some(_), _) => Err(ApiError::field(
            "messages",
            "this model's prompt template takes a single message of the user; hint: for conversations put a \
             chat_template.jinja into the record's folder",
        )),
        (None, _) => Err(ApiError::field(
            "messages",
            "this model has no chat template; hint: put a chat_template.jinja into the record's folder and start the \
             server again, or use /v1/completions",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reply_holds_is_bounded_also_where_only_the_prompt_is_told() {
        let settings = |given| Settings {
            max_tokens: None,
            given,
            echo: true,
            logprobs: Some(5),
            form: Form::Completion,
            param: "prompt",
        };
        assert_eq!(settings(true).bounded(0, 2000, 16), Ok(0));
        assert!(settings(true).bounded(0, 4096, 16).is_err());
        assert!(settings(false).bounded(16, 4096, 16).is_err());
        assert_eq!(
            settings(false).bounded(1000, 2000, 16),
            Ok(MAX_NUMBERS / 96 - 2000)
        );
    }
}
