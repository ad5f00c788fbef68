//! Routes and their handlers.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use crate::api_error::{ApiError, json_response};
use crate::explain_cache::ExplainService;
use crate::limiter::ConcurrencyLimit;
use crate::loaded_model::Model;
use crate::metrics::{self, ModelMetrics, Responses};
use crate::middleware::{ApiKey, HostCheck, handle_request, read_body};
use crate::models::Models;
use crate::params::Params;
use crate::parse::{self, ParsedRequest};
use crate::watch::{self, RunSource};
use crate::{Config, embeddings, explain, openapi, page, panics, stream, tokens};

/// State shared by all requests.
pub(crate) struct AppState {
    pub(crate) models: Arc<Models>,
    pub(crate) config: Config,
    pub(crate) key: Option<ApiKey>,
    stopping: AtomicBool,
    pub(crate) responses: Responses,
    /// Limits JSON parsing: a body of 1 MiB may contain half a million numbers.
    parse_limit: ConcurrencyLimit,
    pub(crate) explain_service: ExplainService,
    /// Limits embeddings, which are computed outside the engines.
    pub(crate) embedding_limit: ConcurrencyLimit,
    /// The runs of a server that shows these, and no models.
    pub(crate) runs: Option<Arc<dyn RunSource>>,
}

/// Maximum number of requests parsed concurrently.
const MAX_CONCURRENT_PARSES: usize = 8;

/// The `route` labels of the metrics.
const ROUTES: [&str; 19] = [
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
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "other",
];

pub(crate) type HandlerResult = Result<Response<Body>, ApiError>;

impl AppState {
    pub(crate) fn new(models: Vec<Arc<Model>>, config: Config) -> Self {
        Self {
            models: Arc::new(Models::new(models, config.default_model.clone())),
            key: config.api_key.as_deref().map(ApiKey::new),
            stopping: AtomicBool::new(false),
            responses: Responses::default(),
            parse_limit: ConcurrencyLimit::new(MAX_CONCURRENT_PARSES, config.queue),
            explain_service: ExplainService::default(),
            embedding_limit: ConcurrencyLimit::new(1, config.queue),
            runs: None,
            config,
        }
    }

    /// The state of a server that shows runs.
    pub(crate) fn for_runs(runs: Arc<dyn RunSource>, config: Config) -> Self {
        Self {
            runs: Some(runs),
            ..Self::new(Vec::new(), config)
        }
    }

    /// Makes new completions fail with 503.
    pub(crate) fn stop_accepting(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Fails with 503 during shutdown.
    pub(crate) fn check_accepting(&self) -> Result<(), ApiError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(ApiError::shutting_down());
        }
        Ok(())
    }

    /// Reads the JSON body of a request, then runs `work` on it off the connection threads.
    pub(crate) async fn parse_json<T: Send + 'static>(
        self: &Arc<Self>,
        request: Request,
        work: impl FnOnce(Arc<Model>, &mut Params<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let source = read_body(self, request).await?;
        let app = self.clone();
        let parse = move || {
            let body: Value = serde_json::from_slice(&source).map_err(|e| {
                ApiError::bad_request(format!("invalid JSON in the request body: {e}"))
            })?;
            let mut params = Params::new(&body, &source[..])?;
            let model = app.models.find(params.string("model")?)?;
            let parsed = work(model, &mut params)?;
            params.reject_unknown()?;
            Ok(parsed)
        };
        self.parse_limit.run(parse).await
    }
}

/// `path` without a slash at its end, which makes no difference.
pub(crate) fn without_trailing_slash(path: &str) -> &str {
    path.strip_suffix('/')
        .filter(|path| !path.is_empty())
        .unwrap_or(path)
}

/// The `route` label of `path` in the metrics.
pub(crate) fn route_name(path: &str) -> &'static str {
    let path = without_trailing_slash(path);
    let exact = ROUTES.into_iter().find(|route| *route == path);
    let is_model = path.starts_with("/v1/models/");
    exact
        .or(is_model.then_some("/v1/models/{model}"))
        .unwrap_or("other")
}

/// The handlers of each route.
pub(crate) fn handlers() -> Vec<(&'static str, MethodRouter<Arc<AppState>>)> {
    let explain_page = || async { explain::index() };
    vec![
        ("/", get(|| async { page::index() })),
        ("/style.css", get(|| async { page::style() })),
        ("/app.js", get(|| async { page::script() })),
        ("/icon.svg", get(|| async { page::icon() })),
        ("/explain", get(explain_page).post(explain::query)),
        ("/explain.css", get(|| async { explain::style() })),
        ("/explain.js", get(|| async { explain::script() })),
        ("/health", get(health)),
        ("/ready", get(ready)),
        ("/metrics", get(prometheus_metrics)),
        ("/openapi.json", get(|| async { openapi::document() })),
        ("/v1/models", get(models)),
        ("/v1/models/{model}", get(model)),
        ("/v1/completions", post(completions)),
        ("/v1/chat/completions", post(chat)),
        ("/v1/embeddings", post(embed)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
    ]
}

/// Builds the router of the server.
pub(crate) fn router(app: Arc<AppState>, host_check: HostCheck) -> Router {
    if let Some(runs) = app.runs.clone() {
        return with_middleware(watch::routes(runs), app, host_check);
    }
    let handlers = handlers().into_iter();
    let routes = handlers.fold(Router::new(), |router, (path, handlers)| match path {
        "/" => router.route(path, handlers),
        _ => router
            .route(&format!("{path}/"), handlers.clone())
            .route(path, handlers),
    });
    let routes = routes
        .fallback(|uri: Uri| async move { no_such_path(uri.path()) })
        .method_not_allowed_fallback(|| async {
            ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        });
    with_middleware(routes, app, host_check)
}

/// 404 with the paths that exist.
fn no_such_path(path: &str) -> ApiError {
    let is_api = |path: &&str| *path != "other" && !path.contains('.') || *path == "/openapi.json";
    let paths: Vec<&str> = ROUTES.into_iter().filter(is_api).collect();
    let path: String = path.chars().take(80).collect();
    ApiError::not_found(format!(
        "no path {path:?}; hint: the paths are {}",
        paths.join(", ")
    ))
}

/// Adds the middleware. A panic becomes an ordinary response, so it is counted and gets all headers.
fn with_middleware(
    routes: Router<Arc<AppState>>,
    app: Arc<AppState>,
    host_check: HostCheck,
) -> Router {
    routes
        .layer(CatchPanicLayer::custom(|payload: Box<dyn Any + Send>| {
            panics::log("a request handler", &*payload);
            ApiError::panicked().into_response()
        }))
        .layer(axum::middleware::from_fn_with_state(
            (app.clone(), host_check),
            handle_request,
        ))
        .with_state(app)
}

async fn health() -> Response<Body> {
    json_response(StatusCode::OK, json!({"status": "ok"}).to_string())
}

async fn ready(State(app): State<Arc<AppState>>) -> HandlerResult {
    app.check_accepting()?;
    for model in app.models.with_engines() {
        model.engine.check_alive()?;
    }
    let ready = json!({"status": "ready"});
    Ok(json_response(StatusCode::OK, ready.to_string()))
}

async fn prometheus_metrics(State(app): State<Arc<AppState>>) -> Response<Body> {
    let models = app.models.all();
    let models: Vec<ModelMetrics<'_>> = models.iter().map(|model| model.metrics()).collect();
    let mut text = String::new();
    metrics::write(&models, &mut text);
    app.responses.write(&mut text);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn models(State(app): State<Arc<AppState>>) -> Response<Body> {
    let models = app.models.all();
    let data: Vec<Value> = models.iter().map(|model| model.to_json()).collect();
    let list = json!({"object": "list", "data": data});
    json_response(StatusCode::OK, list.to_string())
}

async fn model(State(app): State<Arc<AppState>>, Path(name): Path<String>) -> HandlerResult {
    let model = app.models.find(Some(&name))?.to_json();
    Ok(json_response(StatusCode::OK, model.to_string()))
}

async fn completions(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    complete(app, request, parse::completion).await
}

async fn chat(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    complete(app, request, parse::chat).await
}

async fn embed(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    app.check_accepting()?;
    let parse = |model: Arc<Model>, params: &mut Params<'_>| {
        let request = embeddings::parse(&model, params)?;
        Ok((model, request))
    };
    let (model, request) = app.parse_json(request, parse).await?;
    let body = app
        .embedding_limit
        .run(move || embeddings::respond(&model, &request));
    Ok(json_response(StatusCode::OK, body.await?))
}

type ParseFn = fn(Arc<Model>, &mut Params<'_>) -> Result<ParsedRequest, ApiError>;

async fn complete(app: Arc<AppState>, request: Request, parse: ParseFn) -> HandlerResult {
    app.check_accepting()?;
    let ParsedRequest {
        response,
        sequences,
        stream,
    } = app.parse_json(request, parse).await?;
    let updates = response.model().submit(sequences)?;
    Ok(if stream {
        stream::stream_response(response, updates)
    } else {
        json_response(StatusCode::OK, response.collect(updates).await?)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::panics::test_log;

    fn app(config: Config) -> Arc<AppState> {
        Arc::new(AppState::new(Vec::new(), config))
    }

    fn test_router(app: Arc<AppState>) -> Router {
        router(app, HostCheck::Loopback)
    }

    fn send(router: Router, request: axum::http::request::Builder) -> Response<Body> {
        let request = request.header("host", "localhost").body(Body::empty());
        let response = TowerToHyperService::new(router).call(request.unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(response).unwrap()
    }

    #[test]
    fn handler_panic_is_logged_and_returns_500_with_headers() {
        async fn panics() -> Response<Body> {
            panic!("in a handler")
        }
        test_log::init();
        let app = app(Config::default());
        let routes = Router::new().route("/panics", get(panics));
        let router = with_middleware(routes, app.clone(), HostCheck::Loopback);
        let response = send(router, Request::get("/panics"));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(response.headers().contains_key("content-security-policy"));
        let mut counted = String::new();
        app.responses.write(&mut counted);
        assert!(counted.contains("status=\"500\"} 1"), "{counted}");
        let lines = test_log::lines_with("in a handler");
        assert!(lines.len() == 1 && lines[0].contains(file!()), "{lines:?}");
    }

    #[test]
    fn metrics_have_a_label_for_each_route() {
        let paths = handlers().into_iter().map(|(path, _)| path);
        let labels: Vec<&str> = paths.chain(["other"]).collect();
        assert_eq!(labels, ROUTES);
        assert_eq!(route_name("/v1/models/a"), "/v1/models/{model}");
        assert_eq!(route_name("/v2"), "other");
    }

    #[test]
    fn other_sites_may_only_link_to_the_page() {
        let status = |path: &str, site: &str, headers: &[(&str, &str)]| {
            let mut request = Request::get(path).header("sec-fetch-site", site);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            send(test_router(app(Config::default())), request)
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
    fn only_configured_hosts_and_origins_are_allowed() {
        let config = Config {
            allow_hosts: vec!["models.example".into()],
            cors_origins: vec!["https://app.example".into()],
            ..Config::default()
        };
        let send_request = |request| send(test_router(app(config.clone())), request);
        let status =
            |name, value| send_request(Request::get("/v1/models").header(name, value)).status();
        // `send` adds a second `Host`; the first one counts.
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
        let response = send_request(request);
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        let preflight = Request::options("/v1/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,x-stainless-os",
            );
        let response = send_request(preflight);
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let allowed = &response.headers()["access-control-allow-headers"];
        assert_eq!(allowed, "authorization,x-stainless-os");
        let plain = send_request(Request::get("/v1/models"));
        assert!(!plain.headers().contains_key("access-control-allow-origin"));
    }
}
