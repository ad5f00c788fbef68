//! Builds OpenAI response objects and stream chunks.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::SystemTime;

use nextword_data::Encoding;
use nextword_generate::FinishReason;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::engine::{UpdateKind, Updates};
use crate::loaded_model::{Model, seconds};
use crate::output::{TextDelta, TokenInfo};
use crate::params::{CommonParams, random_u64};

/// The endpoint of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Completion,
    Chat,
}

/// The fields shared by all parts of a response.
pub(crate) struct ResponseBuilder {
    pub(crate) endpoint: Endpoint,
    pub(crate) include_usage: bool,
    pub(crate) usage: Usage,
    /// Number of choices (completions) of the request.
    pub(crate) choice_count: usize,
    model: Arc<Model>,
    id: String,
    created: u64,
    /// Completions per prompt.
    n: usize,
    /// Number of top tokens to report, if the client asked for log-probabilities.
    logprobs: Option<usize>,
    /// The prompt texts, if they are echoed.
    echo: Option<Vec<String>>,
    /// What of the prompts is not in the vocabulary.
    unknown: Encoding,
    /// Per prompt, the character offsets of its tokens where their text is not the prompt's.
    prompt_offsets: Vec<Option<Vec<usize>>>,
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    prompt: usize,
    pub(crate) completion: usize,
    pub(crate) cached: usize,
}

/// A choice that accumulates until its completion ends.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenInfo>,
    finish: Option<&'static str>,
}

impl ResponseBuilder {
    pub(crate) fn new(
        model: Arc<Model>,
        endpoint: Endpoint,
        common: &CommonParams,
        logprobs: Option<usize>,
        prompt_tokens: usize,
        echo: Option<Vec<String>>,
    ) -> Self {
        let prefix = match endpoint {
            Endpoint::Completion => "cmpl",
            Endpoint::Chat => "chatcmpl",
        };
        Self {
            endpoint,
            include_usage: common.include_usage,
            usage: Usage {
                prompt: prompt_tokens,
                ..Usage::default()
            },
            choice_count: 0,
            model,
            id: format!("{prefix}-{:016x}{:08x}", random_u64(), random_u64() as u32),
            created: seconds(SystemTime::now()),
            n: common.n,
            logprobs,
            echo,
            unknown: Encoding::default(),
            prompt_offsets: Vec::new(),
        }
    }

    pub(crate) fn with_choice_count(self, choice_count: usize) -> Self {
        Self {
            choice_count,
            ..self
        }
    }

    /// Adds what of the prompts is not in the vocabulary, and where their tokens begin.
    pub(crate) fn with_unknown(
        self,
        unknown: Encoding,
        prompt_offsets: Vec<Option<Vec<usize>>>,
    ) -> Self {
        Self {
            unknown,
            prompt_offsets,
            ..self
        }
    }

    /// The fields about unknown text, if there is any: our extension of OpenAI's format.
    fn insert_unknown(&self, object: &mut Map<String, Value>) {
        if self.unknown.unknown_count > 0 {
            object.insert("unknown".to_owned(), json!(self.unknown.unknown));
            let count = json!(self.unknown.unknown_count);
            object.insert("unknown_count".to_owned(), count);
        }
    }

    /// Corrects the offsets of prompt tokens whose text is not that of the prompt.
    fn with_prompt_offsets(&self, index: usize, mut tokens: Vec<TokenInfo>) -> Vec<TokenInfo> {
        let offsets = self.prompt_offsets.get(index / self.n);
        let offsets = offsets.and_then(Option::as_ref).into_iter().flatten();
        for (token, offset) in tokens.iter_mut().zip(offsets) {
            token.offset = *offset;
        }
        tokens
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the prompt's tokens are scored and reported before the completion's.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.echo.is_some() && self.logprobs.is_some()
    }

    /// The echoed prompt of choice `index`.
    pub(crate) fn echo(&self, index: usize) -> Option<&str> {
        let echo = self.echo.as_ref()?;
        echo.get(index / self.n).map(String::as_str)
    }

    /// Waits for all completions and returns the JSON response.
    ///
    /// # Errors
    /// The error of the first completion that fails.
    pub(crate) async fn collect(mut self, mut updates: Updates) -> Result<String, ApiError> {
        let mut choices: Vec<Choice> = Vec::new();
        choices.resize_with(self.choice_count, Choice::default);
        for (index, choice) in choices.iter_mut().enumerate() {
            choice.text.push_str(self.echo(index).unwrap_or(""));
        }
        let mut unfinished = self.choice_count;
        while unfinished > 0 {
            let update = updates.recv().await.ok_or_else(ApiError::aborted)?;
            let choice = &mut choices[update.index];
            match update.kind {
                UpdateKind::Prompt(tokens) => {
                    let tokens = self.with_prompt_offsets(update.index, tokens);
                    choice.tokens.extend(tokens);
                }
                UpdateKind::Delta(delta) => self.append(choice, update.index, delta),
                UpdateKind::End {
                    last_delta,
                    finish,
                    tokens,
                    cached_tokens,
                } => {
                    self.append(choice, update.index, last_delta);
                    choice.finish = Some(finish_reason(&finish));
                    self.usage.completion += tokens;
                    self.usage.cached += cached_tokens;
                    unfinished -= 1;
                }
                UpdateKind::Failed(error) => return Err(error),
            }
        }
        // Serialized incrementally: in a tree of `Value`s each probability takes a kilobyte.
        let choices = choices.into_iter().enumerate();
        let choices = json_array(choices.map(|(index, choice)| self.choice_json(index, choice)));
        let object = match self.endpoint {
            Endpoint::Completion => "text_completion",
            Endpoint::Chat => "chat.completion",
        };
        let mut envelope = self.envelope(object);
        envelope.insert("usage".to_owned(), self.usage.to_json());
        self.insert_unknown(&mut envelope);
        Ok(with_field(&Value::Object(envelope), "choices", &choices))
    }

    fn append(&self, choice: &mut Choice, index: usize, delta: TextDelta) {
        choice.text.push_str(&delta.text);
        choice
            .tokens
            .extend(self.shift_offsets(index, delta.tokens));
    }

    /// Makes token offsets relative to the start of the echoed prompt.
    fn shift_offsets(&self, index: usize, mut tokens: Vec<TokenInfo>) -> Vec<TokenInfo> {
        let echo_len = self.echo(index).map_or(0, |text| text.chars().count());
        for token in &mut tokens {
            token.offset += echo_len;
        }
        tokens
    }

    /// The JSON of a complete choice.
    fn choice_json(&self, index: usize, choice: Choice) -> String {
        let fields = match self.endpoint {
            Endpoint::Completion => json!({
                "index": index, "text": choice.text, "finish_reason": choice.finish,
            }),
            Endpoint::Chat => json!({
                "index": index, "finish_reason": choice.finish,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
            }),
        };
        with_field(&fields, "logprobs", &self.logprobs_json(&choice.tokens))
    }

    /// The fields of `logprobs` by name; `None` stands for a field that is always `null`.
    fn logprob_fields(&self, top: usize) -> Vec<(&'static str, Option<TokenField>)> {
        match self.endpoint {
            Endpoint::Completion => vec![
                ("tokens", Some(|token| json!(token.text))),
                ("token_logprobs", Some(|token| json!(token.logprob))),
                (
                    "top_logprobs",
                    (top > 0).then_some(top_logprobs as TokenField),
                ),
                ("text_offset", Some(|token| json!(token.offset))),
            ],
            Endpoint::Chat => vec![("content", Some(chat_token_json)), ("refusal", None)],
        }
    }

    /// The JSON of `logprobs` for `tokens`, as text.
    fn logprobs_json(&self, tokens: &[TokenInfo]) -> String {
        let Some(top) = self.logprobs else {
            return "null".to_owned();
        };
        let fields = self.logprob_fields(top).into_iter().map(|(name, field)| {
            let values = field.map(|field| json_array(tokens.iter().map(field)));
            format!("\"{name}\":{}", values.as_deref().unwrap_or("null"))
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        let Some(top) = self.logprobs else {
            return Value::Null;
        };
        let fields = self.logprob_fields(top).into_iter().map(|(name, field)| {
            let values = field.map(|field| tokens.iter().map(field).collect());
            (name.to_owned(), values.unwrap_or_default())
        });
        Value::Object(fields.collect())
    }

    /// The fields that every object and chunk has.
    fn envelope(&self, object: &str) -> Map<String, Value> {
        let envelope = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        });
        match envelope {
            Value::Object(envelope) => envelope,
            _ => Map::new(),
        }
    }

    /// A stream chunk with the given choices.
    fn chunk(&self, choices: Value) -> Value {
        let object = match self.endpoint {
            Endpoint::Completion => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        };
        let mut chunk = self.envelope(object);
        chunk.insert("choices".to_owned(), choices);
        if self.include_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk)
    }

    /// The first chunk of a chat completion, with the role.
    pub(crate) fn role_chunk(&self, index: usize) -> Value {
        self.chunk(json!([{
            "index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null,
            "finish_reason": null,
        }]))
    }

    /// A chunk with a text delta.
    pub(crate) fn text_chunk(&self, index: usize, delta: TextDelta) -> Value {
        let tokens = self.shift_offsets(index, delta.tokens);
        self.text_chunk_with(index, &delta.text, &tokens)
    }

    /// The constant JSON before and after the text of a chunk without log-probabilities.
    pub(crate) fn text_chunk_template(&self, index: usize) -> Option<(String, String)> {
        // A noncharacter, which model names do not contain; if one does, each chunk is serialized in full.
        const PLACEHOLDER: &str = "\u{fdd0}";
        if self.logprobs.is_some() {
            return None;
        }
        let json = self.text_chunk_with(index, PLACEHOLDER, &[]).to_string();
        let (prefix, suffix) = json.split_once(&format!("\"{PLACEHOLDER}\""))?;
        let is_unique = !prefix.contains(PLACEHOLDER) && !suffix.contains(PLACEHOLDER);
        is_unique.then(|| (prefix.to_owned(), suffix.to_owned()))
    }

    /// The chunk with the echoed prompt, and its tokens if they were scored.
    pub(crate) fn prompt_chunk(&self, index: usize, tokens: Vec<TokenInfo>) -> Value {
        let tokens = self.with_prompt_offsets(index, tokens);
        self.text_chunk_with(index, self.echo(index).unwrap_or(""), &tokens)
    }

    fn text_chunk_with(&self, index: usize, text: &str, tokens: &[TokenInfo]) -> Value {
        let logprobs = if tokens.is_empty() {
            Value::Null
        } else {
            self.logprobs(tokens)
        };
        self.chunk(match self.endpoint {
            Endpoint::Completion => json!([{
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": null,
            }]),
            Endpoint::Chat => json!([{
                "index": index, "delta": {"content": text}, "logprobs": logprobs,
                "finish_reason": null,
            }]),
        })
    }

    /// The last chunk of a choice, with its finish reason and what of the prompt is unknown.
    pub(crate) fn finish_chunk(&self, index: usize, finish: &FinishReason) -> Value {
        let reason = finish_reason(finish);
        let mut chunk = self.chunk(match self.endpoint {
            Endpoint::Completion => json!([{
                "index": index, "text": "", "logprobs": null, "finish_reason": reason,
            }]),
            Endpoint::Chat => json!([{
                "index": index, "delta": {}, "logprobs": null, "finish_reason": reason,
            }]),
        });
        if let Value::Object(chunk) = &mut chunk {
            self.insert_unknown(chunk);
        }
        chunk
    }

    /// The chunk with the usage, after all choices.
    pub(crate) fn usage_chunk(&self) -> Value {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = self.usage.to_json();
        chunk
    }
}

impl Usage {
    fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

fn finish_reason(finish: &FinishReason) -> &'static str {
    match finish {
        FinishReason::Eos | FinishReason::Stop(_) | FinishReason::Cancelled => "stop",
        FinishReason::Length | FinishReason::ContextFull => "length",
    }
}

/// Returns one JSON field of a token.
type TokenField = fn(&TokenInfo) -> Value;

/// The top tokens at a token's position, by text.
fn top_logprobs(token: &TokenInfo) -> Value {
    if token.logprob.is_none() {
        return Value::Null;
    }
    let mut map = Map::new();
    for top in &token.top {
        // Of tokens with the same text, the most probable wins.
        map.entry(top.text.clone())
            .or_insert_with(|| json!(top.logprob));
    }
    Value::Object(map)
}

/// A token of a chat completion. `text_offset` is our extension, which OpenAI's clients ignore.
fn chat_token_json(token: &TokenInfo) -> Value {
    let top: Vec<Value> = token
        .top
        .iter()
        .map(|top| json!({"token": top.text, "logprob": top.logprob, "bytes": top.bytes}))
        .collect();
    json!({
        "token": token.text, "logprob": token.logprob, "bytes": token.bytes,
        "top_logprobs": top, "text_offset": token.offset,
    })
}

/// Joins serialized items into a JSON array.
fn json_array(items: impl Iterator<Item = impl Display>) -> String {
    let mut json = "[".to_owned();
    for (at, item) in items.enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(json, "{comma}{item}"); // Writing to a string cannot fail.
    }
    json.push(']');
    json
}

/// Serializes the non-empty `object` with one more field, whose value is `json`.
fn with_field(object: &Value, name: &str, json: &str) -> String {
    let fields = object.to_string();
    let fields = fields.strip_suffix('}').unwrap_or(&fields);
    format!("{fields},\"{name}\":{json}}}")
}
