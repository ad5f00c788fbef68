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
use crate::guard::{Key, guard, read_body};
use crate::metrics::{self, Responses, Shown};
use crate::params::Params;
use crate::prepare::{self, Prepared};
use crate::served::Model;
use crate::turns::Turns;
use crate::{Config, explain, page, stream, tokens};

/// What all requests share.
pub(crate) struct App {
    pub(crate) models: Vec<Arc<Model>>,
    pub(crate) config: Config,
    pub(crate) key: Option<Key>,
    /// Whether only this machine can ask.
    pub(crate) only_loopback: bool,
    pub(crate) stopping: AtomicBool,
    pub(crate) responses: Responses,
    /// For reading requests: a body of 1 MiB may be a list of half a million numbers.
    reading: Turns,
    /// For explaining.
    pub(crate) desk: Desk,
}

/// Requests that are read at once.
const READING: usize = 8;
/// Threads for those and an explanation, with one to spare.
pub(crate) const BLOCKING: usize = READING + 2;

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
    pub(crate) fn new(models: Vec<Arc<Model>>, config: Config, only_loopback: bool) -> Self {
        Self {
            models,
            key: config.api_key.as_deref().map(Key::new),
            only_loopback,
            stopping: AtomicBool::new(false),
            responses: Responses::default(),
            reading: Turns::new(READING, config.queue),
            desk: Desk::default(),
            config,
        }
    }

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

    /// Reads the JSON of a request, beside the threads that serve connections.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        request: Request,
        work: impl FnOnce(Arc<Model>, &Value) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let body = read_body(self, request).await?;
        let app = self.clone();
        let read = move || {
            let body = serde_json::from_slice(&body)
                .map_err(|e| ApiError::bad(format!("the body is no JSON that can be read: {e}")))?;
            work(app.model_of(&body)?, &body)
        };
        self.reading.run(read).await
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
    let routes = Router::new()
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
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
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
        });
    guarded(routes, app)
}

/// A panic becomes a response like others, which the guard counts and puts its headers on.
fn guarded(routes: Router<Arc<App>>, app: Arc<App>) -> Router {
    routes
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::fault().into_response()
        }))
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

async fn health() -> Response<Body> {
    json_response(StatusCode::OK, json!({"status": "ok"}).to_string())
}

async fn ready(State(app): State<Arc<App>>) -> Answer {
    app.check_open()?;
    for model in &app.models {
        model.engine.check()?;
    }
    let ready = json!({"status": "ready"});
    Ok(json_response(StatusCode::OK, ready.to_string()))
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
    let list = json!({"object": "list", "data": data});
    json_response(StatusCode::OK, list.to_string())
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer {
    let model = app.model(Some(&name))?.json();
    Ok(json_response(StatusCode::OK, model.to_string()))
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
    let Prepared {
        reply,
        sequences,
        stream,
        ignored,
    } = app.read(request, prepare).await?;
    let updates = reply.model().engine.submit(sequences)?;
    let mut response = if stream {
        stream::response(reply, updates)
    } else {
        json_response(StatusCode::OK, reply.whole(updates).await?)
    };
    if let Some(value) = HeaderValue::from_str(&ignored)
        .ok()
        .filter(|v| !v.is_empty())
    {
        response.headers_mut().insert("x-ignored-params", value);
    }
    Ok(response)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    fn app(config: Config) -> Arc<App> {
        Arc::new(App::new(Vec::new(), config, true))
    }

    fn ask(router: Router, request: axum::http::request::Builder) -> Response<Body> {
        let request = request.header("host", "localhost").body(Body::empty());
        let answer = TowerToHyperService::new(router).call(request.unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(answer).unwrap()
    }

    #[test]
    fn a_panic_is_a_500_that_is_counted_and_has_all_headers() {
        async fn boom() -> Response<Body> {
            std::panic::panic_any("as a test wants it")
        }
        let app = app(Config::default());
        let router = guarded(Router::new().route("/boom", get(boom)), app.clone());
        let response = ask(router, Request::get("/boom"));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key("content-security-policy"));
        let mut counted = String::new();
        app.responses.write(&mut counted);
        assert!(counted.contains("status=\"500\"} 1"), "{counted}");
    }

    #[test]
    fn pages_of_other_sites_can_embed_nothing_and_open_the_page_alone() {
        let status = |path: &str, site: &str, headers: &[(&str, &str)]| {
            let mut request = Request::get(path).header("sec-fetch-site", site);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            ask(router(app(Config::default())), request)
                .status()
                .as_u16()
        };
        let opens = [
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        let image = [("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
        for site in ["cross-site", "same-site"] {
            assert_eq!(status("/explain?prompt=x&max_tokens=32", site, &image), 403);
            assert_eq!(status("/explain?prompt=x", site, &opens), 403);
            assert_eq!(status("/icon.svg", site, &image), 403);
            assert_eq!(status("/", site, &image), 403);
            assert_eq!(status("/", site, &opens), 200);
        }
        for site in ["same-origin", "none"] {
            assert_eq!(status("/icon.svg", site, &image), 200);
            assert_eq!(status("/v1/models", site, &opens), 200);
        }
    }

    #[test]
    fn named_hosts_and_origins_are_let_in_and_no_others() {
        let config = Config {
            allow_hosts: vec!["models.example".into()],
            cors_origins: vec!["https://app.example".into()],
            ..Config::default()
        };
        let ask = |request| ask(router(app(config.clone())), request);
        let status = |name, value| ask(Request::get("/v1/models").header(name, value)).status();
        // The builder's own `Host` comes second: the first one counts.
        assert_eq!(status("host", "models.example"), StatusCode::OK);
        assert_eq!(status("host", "MODELS.example:443"), StatusCode::OK);
        assert_eq!(status("host", "other.example"), StatusCode::FORBIDDEN);
        assert_eq!(status("host", "models.example.evil"), StatusCode::FORBIDDEN);
        assert_eq!(status("origin", "https://app.example"), StatusCode::OK);
        for origin in ["http://app.example", "https://app.example:8443", "null"] {
            assert_eq!(status("origin", origin), StatusCode::FORBIDDEN, "{origin}");
        }

        let origin = "https://app.example";
        let request = Request::get("/v1/models")
            .header("origin", origin)
            .header("sec-fetch-site", "cross-site");
        let response = ask(request);
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        let preflight = Request::options("/v1/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,x-stainless-os",
            );
        let response = ask(preflight);
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let allowed = &response.headers()["access-control-allow-headers"];
        assert_eq!(allowed, "authorization,x-stainless-os");
        let plain = ask(Request::get("/v1/models"));
        assert!(!plain.headers().contains_key("access-control-allow-origin"));
    }

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
