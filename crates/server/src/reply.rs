//! What a client is sent: objects and chunks in OpenAI's form.

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::SystemTime;

use nextword_generate::FinishReason;
use serde_json::{Map, Value, json};

use crate::answer::{Piece, TokenInfo};
use crate::api_error::ApiError;
use crate::engine::{UpdateKind, Updates};
use crate::params::{Common, random};
use crate::served::{Model, seconds};

/// Which interface a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Completion,
    Chat,
}

/// What all parts of a reply have in common.
pub(crate) struct Reply {
    pub(crate) form: Form,
    pub(crate) include_usage: bool,
    pub(crate) usage: Usage,
    /// Answers of the request.
    pub(crate) count: usize,
    model: Arc<Model>,
    id: String,
    created: u64,
    /// Answers to each prompt.
    n: usize,
    /// `Some` if the client asks for probabilities, with the number of likeliest tokens.
    logprobs: Option<usize>,
    /// The prompts' texts, if they are to be repeated.
    echo: Option<Vec<String>>,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    prompt: usize,
    pub(crate) completion: usize,
    pub(crate) cached: usize,
}

/// One answer as it grows.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenInfo>,
    finish: Option<&'static str>,
}

impl Reply {
    pub(crate) fn new(
        model: Arc<Model>,
        form: Form,
        common: &Common,
        logprobs: Option<usize>,
        prompt_tokens: usize,
        echo: Option<Vec<String>>,
    ) -> Self {
        let prefix = match form {
            Form::Completion => "cmpl",
            Form::Chat => "chatcmpl",
        };
        Self {
            form,
            include_usage: common.include_usage,
            usage: Usage {
                prompt: prompt_tokens,
                ..Usage::default()
            },
            count: 0,
            model,
            id: format!("{prefix}-{:016x}{:08x}", random(), random() as u32),
            created: seconds(SystemTime::now()),
            n: common.n,
            logprobs,
            echo,
        }
    }

    pub(crate) fn of(self, count: usize) -> Self {
        Self { count, ..self }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the prompt's own tokens come before the answer's.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.echo.is_some() && self.logprobs.is_some()
    }

    /// The text that stands before answer `index`.
    pub(crate) fn echo(&self, index: usize) -> Option<&str> {
        let echo = self.echo.as_ref()?;
        echo.get(index / self.n).map(String::as_str)
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// What became of the first answer that failed.
    pub(crate) async fn whole(mut self, mut updates: Updates) -> Result<String, ApiError> {
        let mut choices: Vec<Choice> = Vec::new();
        choices.resize_with(self.count, Choice::default);
        for (index, choice) in choices.iter_mut().enumerate() {
            choice.text.push_str(self.echo(index).unwrap_or(""));
        }
        let mut open = self.count;
        while open > 0 {
            let update = updates.recv().await.ok_or_else(ApiError::given_up)?;
            let choice = &mut choices[update.index];
            match update.kind {
                UpdateKind::Prompt(tokens) => choice.tokens.extend(tokens),
                UpdateKind::Piece(piece) => self.extend(choice, update.index, piece),
                UpdateKind::End {
                    rest,
                    finish,
                    tokens,
                    reused,
                } => {
                    self.extend(choice, update.index, rest);
                    choice.finish = Some(finish_reason(&finish));
                    self.usage.completion += tokens;
                    self.usage.cached += reused;
                    open -= 1;
                }
                UpdateKind::Failed(error) => return Err(error),
            }
        }
        // Written part by part: as a tree of values each probability takes a kilobyte.
        let choices = choices.into_iter().enumerate();
        let choices = list(choices.map(|(index, choice)| self.choice(index, choice)));
        let object = match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion",
        };
        let mut frame = self.frame(object);
        frame.insert("usage".to_owned(), self.usage.json());
        Ok(with_field(&Value::Object(frame), "choices", &choices))
    }

    fn extend(&self, choice: &mut Choice, index: usize, piece: Piece) {
        choice.text.push_str(&piece.text);
        choice.tokens.extend(self.shifted(index, piece.tokens));
    }

    /// Offsets of an answer's tokens count from the beginning of the prompt that is repeated.
    fn shifted(&self, index: usize, mut tokens: Vec<TokenInfo>) -> Vec<TokenInfo> {
        let before = self.echo(index).map_or(0, |text| text.chars().count());
        for token in &mut tokens {
            token.offset += before;
        }
        tokens
    }

    /// JSON of a whole answer.
    fn choice(&self, index: usize, choice: Choice) -> String {
        let head = match self.form {
            Form::Completion => json!({
                "index": index, "text": choice.text, "finish_reason": choice.finish,
            }),
            Form::Chat => json!({
                "index": index, "finish_reason": choice.finish,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
            }),
        };
        with_field(&head, "logprobs", &self.logprobs_json(&choice.tokens))
    }

    /// What is told of tokens, by name; `None` stands for a field that is always `null`.
    fn columns(&self, top: usize) -> Vec<(&'static str, Option<Column>)> {
        match self.form {
            Form::Completion => vec![
                ("tokens", Some(|token| json!(token.text))),
                ("token_logprobs", Some(|token| json!(token.logprob))),
                ("top_logprobs", (top > 0).then_some(top_map as Column)),
                ("text_offset", Some(|token| json!(token.offset))),
            ],
            Form::Chat => vec![("content", Some(chat_token)), ("refusal", None)],
        }
    }

    /// JSON of tokens' probabilities.
    fn logprobs_json(&self, tokens: &[TokenInfo]) -> String {
        let Some(top) = self.logprobs else {
            return "null".to_owned();
        };
        let fields = self.columns(top).into_iter().map(|(name, column)| {
            let values = column.map(|column| list(tokens.iter().map(column)));
            format!("\"{name}\":{}", values.as_deref().unwrap_or("null"))
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        let Some(top) = self.logprobs else {
            return Value::Null;
        };
        let fields = self.columns(top).into_iter().map(|(name, column)| {
            let values = column.map(|column| tokens.iter().map(column).collect());
            (name.to_owned(), values.unwrap_or_default())
        });
        Value::Object(fields.collect())
    }

    fn frame(&self, object: &str) -> Map<String, Value> {
        let frame = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        });
        match frame {
            Value::Object(frame) => frame,
            _ => Map::new(),
        }
    }

    /// One chunk of a stream.
    fn chunk(&self, choices: Value) -> Value {
        let object = match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion.chunk",
        };
        let mut chunk = self.frame(object);
        chunk.insert("choices".to_owned(), choices);
        if self.include_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk)
    }

    /// The chunk that begins a chat's answer.
    pub(crate) fn opening(&self, index: usize) -> Value {
        self.chunk(json!([{
            "index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null,
            "finish_reason": null,
        }]))
    }

    /// A chunk with text.
    pub(crate) fn text(&self, index: usize, piece: Piece) -> Value {
        let tokens = self.shifted(index, piece.tokens);
        self.text_at(index, &piece.text, &tokens)
    }

    /// The JSON of a chunk with nothing but text, before and behind its string: the rest of it never changes.
    pub(crate) fn around_text(&self, index: usize) -> Option<(String, String)> {
        // A character that is none, so no name holds it; if one does, chunks are written one by one.
        const MARK: &str = "\u{fdd0}";
        if self.logprobs.is_some() {
            return None;
        }
        let json = self.text_at(index, MARK, &[]).to_string();
        let (before, behind) = json.split_once(&format!("\"{MARK}\""))?;
        let once = !before.contains(MARK) && !behind.contains(MARK);
        once.then(|| (before.to_owned(), behind.to_owned()))
    }

    /// The chunk that repeats the prompt, with its tokens if they were scored.
    pub(crate) fn prompt(&self, index: usize, tokens: &[TokenInfo]) -> Value {
        self.text_at(index, self.echo(index).unwrap_or(""), tokens)
    }

    fn text_at(&self, index: usize, text: &str, tokens: &[TokenInfo]) -> Value {
        let logprobs = if tokens.is_empty() {
            Value::Null
        } else {
            self.logprobs(tokens)
        };
        self.chunk(match self.form {
            Form::Completion => json!([{
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": null,
            }]),
            Form::Chat => json!([{
                "index": index, "delta": {"content": text}, "logprobs": logprobs,
                "finish_reason": null,
            }]),
        })
    }

    /// The chunk that ends an answer.
    pub(crate) fn end(&self, index: usize, finish: &FinishReason) -> Value {
        let reason = finish_reason(finish);
        self.chunk(match self.form {
            Form::Completion => json!([{
                "index": index, "text": "", "logprobs": null, "finish_reason": reason,
            }]),
            Form::Chat => json!([{
                "index": index, "delta": {}, "logprobs": null, "finish_reason": reason,
            }]),
        })
    }

    /// The chunk with the usage, behind all answers.
    pub(crate) fn usage_chunk(&self) -> Value {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = self.usage.json();
        chunk
    }
}

impl Usage {
    fn json(&self) -> Value {
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

/// What is told of one token.
type Column = fn(&TokenInfo) -> Value;

/// The likeliest tokens in a token's place, by their texts.
fn top_map(token: &TokenInfo) -> Value {
    if token.logprob.is_none() {
        return Value::Null;
    }
    let mut map = Map::new();
    for top in &token.top {
        // Of two tokens that read alike the likelier counts.
        map.entry(top.text.clone())
            .or_insert_with(|| json!(top.logprob));
    }
    Value::Object(map)
}

/// A token of a chat. `text_offset` is ours: OpenAI's clients pass over what they do not know.
fn chat_token(token: &TokenInfo) -> Value {
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

/// JSON of a list of what is JSON already.
fn list(items: impl Iterator<Item = impl Display>) -> String {
    let mut json = "[".to_owned();
    for (at, item) in items.enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(json, "{comma}{item}"); // A string takes everything.
    }
    json.push(']');
    json
}

/// JSON of `object`, which has a field already, with one more field.
fn with_field(object: &Value, name: &str, json: &str) -> String {
    let head = object.to_string();
    let head = head.strip_suffix('}').unwrap_or(&head);
    format!("{head},\"{name}\":{json}}}")
}
