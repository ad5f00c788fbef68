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

    /// The run `name`: its metrics from byte `offset` of their file on, the offset after them, and its newest samples.
    /// `None` if there is no such run.
    fn run(&self, name: &str, offset: u64) -> Option<Value>;
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
        .route("/runs/{name}", get(run))
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
    let from = uri.query().and_then(|query| query.strip_prefix("from="));
    let offset = from.and_then(|from| from.parse().ok()).unwrap_or(0);
    read(source, move |source| source.run(&name, offset)).await
}
