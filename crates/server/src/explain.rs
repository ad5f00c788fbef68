//! What a model computed for a prompt, as the page of `nextword explain` or as JSON.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use nextword_explain::{Edit, ExplainError, Explainer, StoryOptions, page};
use nextword_generate::{SamplingConfig, TextOptions};
use serde_json::{Map, Value, json};

use crate::api_error::{ApiError, json_response};
use crate::guard::read_json;
use crate::params::Params;
use crate::routes::{Answer, App, apart};
use crate::served::Model;

/// The page is one file: its script and style stand in it, and it asks nothing of anyone.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Larger models are explained at the terminal: all weights are held once more, in f64.
const MOST_PARAMETERS: usize = 20_000_000;

/// Tokens of an answer at most: each is explained number by number.
const MOST_TOKENS: u64 = 32;

/// One explanation at a time: it may hold a copy of a model.
static TURN: Mutex<()> = Mutex::new(());

/// `GET /explain?prompt=TEXT&model=NAME&max_tokens=N`: the page.
pub(crate) async fn page(State(app): State<Arc<App>>, request: Request) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    let fields: Map<String, Value> = form_urlencoded::parse(query.as_bytes())
        .map(|(key, value)| {
            let number = value.parse::<u64>().ok().filter(|_| key == "max_tokens");
            let value = number.map_or_else(|| json!(value), |number| json!(number));
            (key.into_owned(), value)
        })
        .collect();
    let body = Value::Object(fields);
    let model = app.model_of(&body)?;
    let with_weights = app.only_loopback;
    let html = apart(move || {
        let mut params = Params::new(&body)?;
        let prompt = params.string("prompt")?.unwrap_or_default();
        let options = options(&mut params)?;
        explained(&model, |explainer| {
            let explanation = explainer.explain(prompt, &options)?;
            let mut pane = page::Pane::of(&explanation, &StoryOptions::default())?;
            // What lets the page compute by itself is the model: it stays on this machine.
            pane.weights = pane.weights.filter(|_| with_weights);
            Ok(page::render(&page::Data {
                panes: vec![pane],
                learning: None,
            }))
        })
    });
    let mut response = Response::new(Body::from(html.await?));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// `POST /explain` with `prompt`: its story, or with `why` where a number comes from, or with `what_if`
/// (`[{"change": "head_off", "layer": 0, "head": 1}]`) the next words if things were otherwise.
pub(crate) async fn numbers(State(app): State<Arc<App>>, request: Request) -> Answer {
    let body = read_json(&app, request).await?;
    let model = app.model_of(&body)?;
    let value = apart(move || {
        let mut params = Params::new(&body)?;
        let prompt = params.string("prompt")?.unwrap_or_default();
        let options = options(&mut params)?;
        let why = params.string("why")?;
        let edits = params.get("what_if").cloned();
        let edits: Option<Vec<Edit>> =
            edits.map(serde_json::from_value).transpose().map_err(|e| {
                ApiError::field("what_if", format!("`what_if` is no list of edits: {e}"))
            })?;
        explained(&model, |explainer| {
            let explanation = explainer.explain(prompt, &options)?;
            let value = match (why, edits) {
                (Some(address), _) => serde_json::to_value(explanation.why(address)?),
                (None, Some(edits)) => serde_json::to_value(explanation.what_if(&edits)?),
                (None, None) => serde_json::to_value(explanation.story(&StoryOptions::default())?),
            };
            Ok(value.unwrap_or_default()) // Numbers and strings, which JSON can always express.
        })
    });
    Ok(json_response(StatusCode::OK, &value.await?))
}

fn options(params: &mut Params<'_>) -> Result<TextOptions, ApiError> {
    let max_tokens = params.integer("max_tokens", 1..=MOST_TOKENS)?;
    Ok(TextOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens: max_tokens.unwrap_or(1),
        ..TextOptions::default()
    })
}

fn explained<T>(
    model: &Model,
    work: impl FnOnce(&Explainer) -> Result<T, ExplainError>,
) -> Result<T, ApiError> {
    let parameters = model.config().counts().total();
    if parameters > MOST_PARAMETERS {
        return Err(ApiError::bad(format!(
            "a model of {parameters} parameters is too large to be explained here; hint: `nextword explain` on \
             the server's machine can, layer by layer"
        )));
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let explainer = Explainer::new(model.generator.clone());
    work(&explainer).map_err(|error| ApiError::bad(error.to_string()))
}
