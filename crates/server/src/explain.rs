//! What a model computed for a prompt: a page, and the numbers that it asks for.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use nextword_explain::{Edit, ExplainError, Explanation, StoryOptions, page};
use nextword_generate::{SamplingConfig, TextOptions};
use serde_json::json;

use crate::api_error::{ApiError, json_response};
use crate::page::file;
use crate::params::Params;
use crate::routes::{Answer, App};

/// Tokens of an answer at most: each is explained number by number.
const MOST_TOKENS: u64 = 32;

/// Numbers of a story at most; a layer's are asked for one by one where there are more.
const MOST_SHOWN: usize = 300_000;

pub(crate) fn index() -> Response<Body> {
    file(page::live(), "text/html; charset=utf-8")
}

pub(crate) fn style() -> Response<Body> {
    file(page::CSS, "text/css; charset=utf-8")
}

pub(crate) fn script() -> Response<Body> {
    file(page::JS.as_str(), "text/javascript; charset=utf-8")
}

/// What is asked about a prompt.
enum Question {
    /// The whole story.
    Story,
    /// The story with the vocabulary's texts.
    Pane,
    /// Where a number comes from.
    Why(String),
    /// The next words if things were otherwise.
    WhatIf(Vec<Edit>),
    /// The tensors of a layer.
    Layer(usize),
    /// A token's embedding.
    Embedding(u32),
}

/// `POST /explain` with `prompt`: its story; with `why` where a number comes from; with `what_if`
/// (`[{"change": "head_off", "layer": 0, "head": 1}]`) the next words if things were otherwise; with
/// `layer` the numbers of a layer; with `embedding` those of a token id. With `learning` what the model's
/// run kept over its training.
pub(crate) async fn numbers(State(app): State<Arc<App>>, request: Request) -> Answer {
    app.check_open()?;
    let read = app.read(request, |model, body| {
        let mut params = Params::new(body)?;
        let learning = params.flag("learning")?;
        let prompt = params.string("prompt")?.unwrap_or_default().to_owned();
        let (options, question) = (options(&mut params)?, question(&mut params)?);
        Ok((model, learning, prompt, options, question))
    });
    let (model, learning, prompt, options, question) = read.await?;
    if learning {
        let kept = json!({"learning": model.learning});
        return Ok(json_response(StatusCode::OK, kept.to_string()));
    }
    let text = app.desk.ask(model, prompt, options, move |explanation| {
        let text = answer(explanation, question)?;
        Ok(text.unwrap_or_default()) // Numbers and strings, which JSON can always express.
    });
    Ok(json_response(StatusCode::OK, text.await?))
}

/// As text at once: a `Value` would write single precision's numbers with twice the digits.
fn answer(
    explanation: &Explanation<'_>,
    question: Question,
) -> Result<serde_json::Result<String>, ExplainError> {
    let options = StoryOptions {
        most: MOST_SHOWN,
        ..StoryOptions::default()
    };
    Ok(match question {
        Question::Story => serde_json::to_string(&explanation.story(&options)?),
        // What would let the page compute by itself is the model, which stays here.
        Question::Pane => {
            serde_json::to_string(&page::Pane::without_weights(explanation, &options)?)
        }
        Question::Why(address) => serde_json::to_string(&explanation.why(&address)?),
        Question::WhatIf(edits) => serde_json::to_string(&explanation.what_if(&edits)?),
        Question::Layer(layer) => {
            let tensors = explanation.layer(layer, 8 * MOST_SHOWN)?;
            serde_json::to_string(&BTreeMap::from([("tensors", tensors)]))
        }
        Question::Embedding(id) => serde_json::to_string(&json!({
            "id": id,
            "text": explanation.explainer.text(id),
            "numbers": explanation.explainer.embedding(id)?,
        })),
    })
}

fn question(params: &mut Params<'_>) -> Result<Question, ApiError> {
    if let Some(address) = params.string("why")? {
        return Ok(Question::Why(address.to_owned()));
    }
    if let Some(edits) = params.get("what_if") {
        let edits = serde_json::from_value(edits.clone());
        return edits.map(Question::WhatIf).map_err(|e| {
            let hint = r#"[{"change": "head_off", "layer": 0, "head": 0}]"#;
            ApiError::field(
                "what_if",
                format!("`what_if` is no list of edits: {e}; hint: as in {hint}"),
            )
        });
    }
    if let Some(layer) = params.integer("layer", 0..=u64::from(u32::MAX))? {
        return Ok(Question::Layer(layer));
    }
    if let Some(id) = params.integer("embedding", 0..=u64::from(u32::MAX))? {
        return Ok(Question::Embedding(id as u32));
    }
    Ok(if params.flag("pane")? {
        Question::Pane
    } else {
        Question::Story
    })
}

fn options(params: &mut Params<'_>) -> Result<TextOptions, ApiError> {
    let max_tokens = params.integer("max_tokens", 1..=MOST_TOKENS)?;
    let sampling = SamplingConfig {
        temperature: params.number("temperature", 0.0..=2.0)?.unwrap_or(0.0),
        top_k: params
            .integer("top_k", 0..=u64::from(u32::MAX))?
            .filter(|k| *k > 0),
        top_p: params.number("top_p", 1e-9..=1.0)?.filter(|p| *p < 1.0),
        seed: params.integer("seed", 0..=u64::MAX)?.unwrap_or(0) as u64,
        ..SamplingConfig::greedy()
    };
    sampling
        .validate()
        .map_err(|e| ApiError::bad(e.to_string()))?;
    Ok(TextOptions {
        sampling,
        max_tokens: max_tokens.unwrap_or(1),
        ..TextOptions::default()
    })
}
