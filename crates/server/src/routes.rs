//! Which path does what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use crate::api_error::{ApiError, json_response};
use crate::desk::Desk;
use crate::guard::{Key, guard, read_json};
use crate::metrics::{self, Responses, Shown};
use crate::params::Params;
use crate::prepare::{self, Prepared, read_ids};
use crate::served::Model;
use crate::{Config, explain, page, stream};

/// What all requests share.
pub(crate) struct App {
    pub(crate) models: Vec<Arc<Model>>,
    pub(crate) config: Config,
    pub(crate) key: Option<Key>,
    /// Whether only this machine can ask.
    pub(crate) only_loopback: bool,
    pub(crate) stopping: AtomicBool,
    pub(crate) responses: Responses,
    pub(crate) desk: Desk,
}

/// All paths.
const ROUTES: [&str; 18] = [
    "/",
    "/style.css",
    "/app.js",
    "/icon.svg",
    "/explain",
    "/explain.css",
    "/explain.js",
    "/health",
    "/ready",
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
    "other",
];

pub(crate) type Answer = Result<Response<Body>, ApiError>;

impl App {
    /// The model that a request names; the first if it names none.
    fn model(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let found = match name {
            None => self.models.first(),
            Some(name) => self.models.iter().find(|model| model.name == name),
        };
        found.cloned().ok_or_else(|| {
            let known: Vec<String> = self.models.iter().map(|m| m.name.clone()).collect();
            ApiError::unknown_model(name.unwrap_or(""), &known)
        })
    }

    pub(crate) fn model_of(&self, body: &Value) -> Result<Arc<Model>, ApiError> {
        self.model(Params::new(body)?.string("model")?)
    }

    pub(crate) fn check_open(&self) -> Result<(), ApiError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(ApiError::stopping());
        }
        Ok(())
    }
}

/// A path's name in the metrics.
pub(crate) fn route_name(path: &str) -> &'static str {
    let same = ROUTES.into_iter().find(|route| *route == path);
    let is_model = path.starts_with("/v1/models/");
    same.or(is_model.then_some("/v1/models/{model}"))
        .unwrap_or("other")
}

/// The service behind every connection.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(|| async { page::index() }))
        .route("/style.css", get(|| async { page::style() }))
        .route("/app.js", get(|| async { page::script() }))
        .route("/icon.svg", get(|| async { page::icon() }))
        .route("/openapi.json", get(|| async { page::openapi() }))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(figures))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route(
            "/explain",
            get(|| async { explain::index() }).post(explain::numbers),
        )
        .route("/explain.css", get(|| async { explain::style() }))
        .route("/explain.js", get(|| async { explain::script() }))
        .fallback(|| async { ApiError::not_found("there is nothing under this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::with_status(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path takes another method",
            )
        })
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard))
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("this request met a fault of the server").into_response()
        }))
        .with_state(app)
}

async fn health() -> Response<Body> {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

async fn ready(State(app): State<Arc<App>>) -> Answer {
    app.check_open()?;
    Ok(json_response(StatusCode::OK, &json!({"status": "ready"})))
}

async fn figures(State(app): State<Arc<App>>) -> Response<Body> {
    let models: Vec<Shown<'_>> = app
        .models
        .iter()
        .map(|model| Shown {
            name: model.name.clone(),
            metrics: &model.metrics,
            queued: model.engine.queued(),
            slots: model.engine.slots(),
        })
        .collect();
    let mut text = String::new();
    metrics::write(&models, &mut text);
    app.responses.write(&mut text);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    let data: Vec<Value> = app.models.iter().map(|model| model.json()).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer {
    Ok(json_response(
        StatusCode::OK,
        &app.model(Some(&name))?.json(),
    ))
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Answer {
    answer(app, request, prepare::completion).await
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Answer {
    answer(app, request, prepare::chat).await
}

type Prepare = fn(Arc<Model>, &Value) -> Result<Prepared, ApiError>;

async fn answer(app: Arc<App>, request: Request, prepare: Prepare) -> Answer {
    app.check_open()?;
    let body = read_json(&app, request).await?;
    let model = app.model_of(&body)?;
    let prepared = apart(move || prepare(model, &body)).await?;
    let Prepared {
        reply,
        sequences,
        stream,
        ignored,
    } = prepared;
    let updates = reply.model().engine.submit(sequences);
    let updates = updates.ok_or_else(ApiError::busy)?;
    let mut response = if stream {
        stream::response(reply, updates)
    } else {
        json_response(StatusCode::OK, &reply.whole(updates).await?)
    };
    if let Some(value) = HeaderValue::from_str(&ignored)
        .ok()
        .filter(|v| !v.is_empty())
    {
        response.headers_mut().insert("x-ignored-params", value);
    }
    Ok(response)
}

/// Runs what may take a while beside the threads that serve connections.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("this request met a fault of the server")))
}

/// `{"content": TEXT, "with_pieces": BOOL}` to token ids, or to ids with their texts.
async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Answer {
    let body = read_json(&app, request).await?;
    let model = app.model_of(&body)?;
    let value = apart(move || {
        let mut params = Params::new(&body)?;
        let text = params.string("content")?.or(params.string("prompt")?);
        let text = text.ok_or_else(|| ApiError::field("content", "`content` is missing"))?;
        let with_pieces = params.flag("with_pieces")?;
        let encoding = model.tokenizer().encode(text);
        let tokens = if with_pieces {
            let piece = |id: &u32| json!({"id": id, "piece": model.tokenizer().token(*id)});
            encoding.ids.iter().map(piece).collect()
        } else {
            json!(encoding.ids)
        };
        Ok(json!({
            "tokens": tokens, "count": encoding.ids.len(), "unknown": encoding.unknown,
            "max_model_len": model.config().context_length,
        }))
    });
    Ok(json_response(StatusCode::OK, &value.await?))
}

/// `{"tokens": [ID]}` to text.
async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Answer {
    let body = read_json(&app, request).await?;
    let model = app.model_of(&body)?;
    let value = apart(move || {
        let list = Params::new(&body)?.get("tokens").and_then(Value::as_array);
        let list =
            list.ok_or_else(|| ApiError::field("tokens", "`tokens` must be a list of ids"))?;
        let ids = read_ids("tokens", &model, list)?;
        Ok(json!({"content": model.tokenizer().decode(&ids)}))
    });
    Ok(json_response(StatusCode::OK, &value.await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_of_the_interface_names_every_path() {
        let described: Value = serde_json::from_str(page::OPENAPI).unwrap_or_default();
        let pages = [
            "/",
            "/style.css",
            "/app.js",
            "/icon.svg",
            "/explain.css",
            "/explain.js",
            "other",
        ];
        for route in ROUTES.into_iter().filter(|route| !pages.contains(route)) {
            assert!(
                described["paths"].get(route).is_some(),
                "{route} is missing"
            );
        }
    }
}
