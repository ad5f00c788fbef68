//! `/explain`: the page that explains a prompt, and the JSON queries behind it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use nextword_explain::{Edit, ExplainError, Explanation, ReportOptions, page};
use nextword_generate::{SamplingConfig, TextOptions};
use serde_json::json;

use crate::api_error::{ApiError, json_response};
use crate::page::file_response;
use crate::params::Params;
use crate::routes::{AppState, HandlerResult};

/// Maximum tokens of a completion, since each one is explained in full.
const MAX_TOKENS: u64 = 32;

/// Maximum values in a report; beyond it, the page loads layers one by one.
const MAX_SHOWN_VALUES: usize = 300_000;

pub(crate) fn index() -> Response<Body> {
    file_response(page::render_live(), "text/html; charset=utf-8")
}

pub(crate) fn style() -> Response<Body> {
    file_response(page::CSS, "text/css; charset=utf-8")
}

pub(crate) fn script() -> Response<Body> {
    file_response(page::JS.as_str(), "text/javascript; charset=utf-8")
}

/// A parsed request.
pub(crate) struct ExplainRequest {
    /// Whether only the training history is wanted.
    wants_history: bool,
    prompt: String,
    options: TextOptions,
    query: ExplainQuery,
}

/// A query about a prompt.
enum ExplainQuery {
    /// The full report.
    Report,
    /// The report together with the vocabulary's token texts.
    ReportWithVocabulary,
    /// How a value was computed.
    Why(String),
    /// The predictions after edits to the model.
    WhatIf(Vec<Edit>),
    /// All tensors of a layer.
    Layer(usize),
    /// The embedding of a token.
    Embedding(u32),
}

/// `POST /explain` returns the report for `prompt`, or with one of these fields:
/// - `why`: how the value at this address was computed;
/// - `what_if` (`[{"change": "head_off", "layer": 0, "head": 1}]`): the predictions after these edits;
/// - `layer`: the tensors of this layer;
/// - `embedding`: the embedding of this token id;
/// - `learning`: the training history of the model's run.
pub(crate) async fn query(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    app.check_accepting()?;
    let (model, request) = app
        .parse_json(request, |model, params| Ok((model, parse(params)?)))
        .await?;
    let ExplainRequest {
        wants_history,
        prompt,
        options,
        query,
    } = request;
    if wants_history {
        let history = json!({"learning": model.training_history});
        return Ok(json_response(StatusCode::OK, history.to_string()));
    }
    let work = move |explanation: &Explanation<'_>| {
        // Numbers and strings always serialize.
        run_query(explanation, query).map(Result::unwrap_or_default)
    };
    let json = app
        .explain_service
        .with_explanation(model, prompt, options, work);
    Ok(json_response(StatusCode::OK, json.await?))
}

/// Returns serialized JSON: a `Value` would write f32 values with the digits of f64.
fn run_query(
    explanation: &Explanation<'_>,
    query: ExplainQuery,
) -> Result<serde_json::Result<String>, ExplainError> {
    let options = ReportOptions {
        max_values: MAX_SHOWN_VALUES,
        ..ReportOptions::default()
    };
    Ok(match query {
        ExplainQuery::Report => serde_json::to_string(&explanation.report(&options)?),
        // The weights stay on the server.
        ExplainQuery::ReportWithVocabulary => {
            serde_json::to_string(&page::Panel::without_weights(explanation, &options)?)
        }
        ExplainQuery::Why(address) => serde_json::to_string(&explanation.why(&address)?),
        ExplainQuery::WhatIf(edits) => serde_json::to_string(&explanation.what_if(&edits)?),
        ExplainQuery::Layer(layer) => {
            let tensors = explanation.layer_tensors(layer, 8 * MAX_SHOWN_VALUES)?;
            serde_json::to_string(&BTreeMap::from([("tensors", tensors)]))
        }
        ExplainQuery::Embedding(id) => serde_json::to_string(&json!({
            "id": id,
            "text": explanation.explainer.token_text(id),
            "numbers": explanation.explainer.embedding(id)?,
        })),
    })
}

/// Parses the body of `POST /explain`.
pub(crate) fn parse(params: &mut Params<'_>) -> Result<ExplainRequest, ApiError> {
    // The first one that is given is answered.
    params.ignore(&["why", "what_if", "layer", "embedding", "pane"]);
    Ok(ExplainRequest {
        wants_history: params.flag("learning")?,
        prompt: params.string("prompt")?.unwrap_or_default().to_owned(),
        options: parse_options(params)?,
        query: parse_query(params)?,
    })
}

fn parse_query(params: &mut Params<'_>) -> Result<ExplainQuery, ApiError> {
    if let Some(address) = params.string("why")? {
        return Ok(ExplainQuery::Why(address.to_owned()));
    }
    if let Some(edits) = params.get("what_if") {
        let edits = serde_json::from_value(edits.clone());
        return edits.map(ExplainQuery::WhatIf).map_err(|e| {
            let example = r#"[{"change": "head_off", "layer": 0, "head": 0}]"#;
            ApiError::invalid_field(
                "what_if",
                format!("`what_if` is not a valid list of edits: {e}; hint: for example {example}"),
            )
        });
    }
    if let Some(layer) = params.integer("layer", 0..=u64::from(u32::MAX))? {
        return Ok(ExplainQuery::Layer(layer));
    }
    if let Some(id) = params.integer("embedding", 0..=u64::from(u32::MAX))? {
        return Ok(ExplainQuery::Embedding(id as u32));
    }
    Ok(if params.flag("pane")? {
        ExplainQuery::ReportWithVocabulary
    } else {
        ExplainQuery::Report
    })
}

fn parse_options(params: &mut Params<'_>) -> Result<TextOptions, ApiError> {
    let max_tokens = params.integer("max_tokens", 1..=MAX_TOKENS)?;
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
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    Ok(TextOptions {
        sampling,
        max_tokens: max_tokens.unwrap_or(1),
        ..TextOptions::default()
    })
}
