//! The page that shows runs while they train. It reads what a [`RunSource`] offers: never a path from a request.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::Value;

use crate::api_error::{ApiError, json_response};
use crate::page::{file_response, icon};

/// Runs that a page shows.
pub trait RunSource: Send + Sync {
    /// All runs: a list of objects with `name` and whatever else the page shows in its list.
    fn runs(&self) -> Value;

    /// The run `name`: the `lines` of its metrics from `position` on, or if the file no longer has what was before that,
    /// from its start; the place `from` which they are; the position behind them as `offset` and `mark`; the newest
    /// `sample_step`; and the steps of its probes. `None` if there is no such run.
    fn run(&self, name: &str, position: &MetricsPosition) -> Option<Value>;

    /// Samples of the run `name` that are newer than those of the step `after`: a list of objects with `step` and `text`.
    fn samples(&self, name: &str, after: Option<u64>) -> Option<Value>;

    /// What the probe sentences gave at `step` of the run `name`.
    fn probes(&self, name: &str, step: u64) -> Option<Value>;
}

/// How far a page has read the metrics of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsPosition {
    /// Bytes of the file.
    pub offset: u64,
    /// Identifies what is before them; empty at the start.
    pub mark: String,
}

/// The routes of the page that shows the runs of `source`.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(source: Arc<dyn RunSource>) -> Router<S> {
    Router::new()
        .route("/", get(|| async { index() }))
        .route("/watch.css", get(|| async { style() }))
        .route("/watch.js", get(|| async { script() }))
        .route("/icon.svg", get(|| async { icon() }))
        .route("/health", get(|| async { "ok" }))
        .route("/runs", get(runs))
        .route("/watch_probes.js", get(|| async { probes_script() }))
        .route("/runs/{name}", get(run))
        .route("/runs/{name}/samples", get(samples))
        .route("/runs/{name}/probes/{step}", get(probes))
        .fallback(|| async { ApiError::not_found("no such path; hint: the page is at /") })
        .method_not_allowed_fallback(|| async {
            ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .with_state(source)
}

fn index() -> Response<Body> {
    file_response(
        include_str!("../page/watch.html"),
        "text/html; charset=utf-8",
    )
}

fn style() -> Response<Body> {
    file_response(include_str!("../page/watch.css"), "text/css; charset=utf-8")
}

fn script() -> Response<Body> {
    file_response(
        include_str!("../page/watch.js"),
        "text/javascript; charset=utf-8",
    )
}

fn probes_script() -> Response<Body> {
    file_response(
        include_str!("../page/watch_probes.js"),
        "text/javascript; charset=utf-8",
    )
}

/// The value of `key` in the query of an address.
fn parameter<'a>(uri: &'a Uri, key: &str) -> Option<&'a str> {
    let pairs = uri.query().into_iter().flat_map(|query| query.split('&'));
    let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(name, value)| (name == key).then_some(value))
}

/// Reads files off the connection threads.
async fn read(
    source: Arc<dyn RunSource>,
    work: impl FnOnce(&dyn RunSource) -> Option<Value> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let reading = tokio::task::spawn_blocking(move || work(source.as_ref()));
    match reading.await {
        Ok(Some(value)) => Ok(json_response(StatusCode::OK, value.to_string())),
        Ok(None) => Err(ApiError::not_found(
            "no such run; hint: GET /runs lists them",
        )),
        Err(_) => Err(ApiError::panicked()),
    }
}

async fn runs(State(source): State<Arc<dyn RunSource>>) -> impl IntoResponse {
    read(source, |source| Some(source.runs())).await
}

async fn run(
    State(source): State<Arc<dyn RunSource>>,
    Path(name): Path<String>,
    uri: Uri,
) -> impl IntoResponse {
    let offset = parameter(&uri, "from").and_then(|from| from.parse().ok());
    let position = MetricsPosition {
        offset: offset.unwrap_or(0),
        mark: parameter(&uri, "mark").unwrap_or_default().to_string(),
    };
    read(source, move |source| source.run(&name, &position)).await
}

async fn samples(
    State(source): State<Arc<dyn RunSource>>,
    Path(name): Path<String>,
    uri: Uri,
) -> impl IntoResponse {
    let after = parameter(&uri, "after").and_then(|step| step.parse().ok());
    read(source, move |source| source.samples(&name, after)).await
}

async fn probes(
    State(source): State<Arc<dyn RunSource>>,
    Path((name, step)): Path<(String, u64)>,
) -> impl IntoResponse {
    read(source, move |source| source.probes(&name, step)).await
}
