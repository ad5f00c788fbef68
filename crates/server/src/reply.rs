//! What a client is sent: objects and chunks in OpenAI's form.

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
    pub(crate) async fn whole(mut self, mut updates: Updates) -> Result<Value, ApiError> {
        let mut choices: Vec<Choice> = Vec::new();
        choices.resize_with(self.count, Choice::default);
        for (index, choice) in choices.iter_mut().enumerate() {
            choice.text.push_str(self.echo(index).unwrap_or(""));
        }
        let mut open = self.count;
        while open > 0 {
            let update = updates.recv().await.ok_or_else(ApiError::stopping)?;
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
                UpdateKind::Failed(message) => return Err(ApiError::internal(message)),
            }
        }
        let choices = choices.into_iter().enumerate();
        let choices = choices
            .map(|(index, choice)| self.choice(index, choice))
            .collect();
        let object = match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion",
        };
        let mut whole = self.frame(object, choices);
        whole.insert("usage".to_owned(), self.usage.json());
        Ok(Value::Object(whole))
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

    fn choice(&self, index: usize, choice: Choice) -> Value {
        let logprobs = self.logprobs(&choice.tokens);
        match self.form {
            Form::Completion => json!({
                "index": index, "text": choice.text, "logprobs": logprobs,
                "finish_reason": choice.finish,
            }),
            Form::Chat => json!({
                "index": index, "logprobs": logprobs, "finish_reason": choice.finish,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
            }),
        }
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Value {
        match (self.logprobs, self.form) {
            (None, _) => Value::Null,
            (Some(top), Form::Completion) => completion_logprobs(tokens, top > 0),
            (Some(_), Form::Chat) => json!({"content": chat_logprobs(tokens), "refusal": null}),
        }
    }

    fn frame(&self, object: &str, choices: Value) -> Map<String, Value> {
        let frame = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model.name,
            "system_fingerprint": self.model.fingerprint, "choices": choices,
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
        let mut chunk = self.frame(object, choices);
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

fn completion_logprobs(tokens: &[TokenInfo], with_top: bool) -> Value {
    let texts: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    let logprobs: Vec<Option<f64>> = tokens.iter().map(|token| token.logprob).collect();
    let offsets: Vec<usize> = tokens.iter().map(|token| token.offset).collect();
    let top = tokens.iter().map(|token| {
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
    });
    let top = with_top.then(|| top.collect::<Vec<Value>>());
    json!({
        "tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets,
    })
}

fn chat_logprobs(tokens: &[TokenInfo]) -> Vec<Value> {
    let entry = |token: &TokenInfo| {
        let top: Vec<Value> = token
            .top
            .iter()
            .map(|top| json!({"token": top.text, "logprob": top.logprob, "bytes": top.bytes}))
            .collect();
        json!({
            "token": token.text, "logprob": token.logprob, "bytes": token.bytes,
            "top_logprobs": top,
        })
    };
    tokens.iter().map(entry).collect()
}
