//! Access control, security headers, the request's span and event, and response counts.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::AsHeaderName;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::Instrument;

use crate::api_error::ApiError;
use crate::routes::{AppState, route_name, without_trailing_slash};

/// Restricts the page to this server.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An API key, stored as a hash so that comparison takes constant time.
#[derive(Clone, Debug)]
pub(crate) struct ApiKey([u8; 32]);

impl ApiKey {
    pub(crate) fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    fn matches(&self, candidate: &str) -> bool {
        self.0.ct_eq(&Self::new(candidate).0).into()
    }
}

/// Which `Host` headers are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostCheck {
    /// Those that name a loopback address or one of `Config::allow_hosts`.
    Loopback,
    /// All.
    Off,
}

/// Handles a request in a span of its own, logs its response and counts it.
pub(crate) async fn handle_request(
    State((app, host_check)): State<(Arc<AppState>, HostCheck)>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let start = Instant::now();
    let route = route_name(request.uri().path());
    let (method, path) = (request.method(), request.uri().path());
    let span = tracing::info_span!("request", %method, %path);
    let response = respond(&app, host_check, request, next);
    let response = response.instrument(span.clone()).await;
    let status = response.status().as_u16();
    // The time until the headers: a stream may go on for minutes.
    let ms = start.elapsed().as_millis() as u64;
    span.in_scope(|| tracing::info!(status, ms, "response"));
    app.responses.count(route, status);
    response
}

/// Checks a request, passes it on, and adds headers to its response.
async fn respond(
    app: &AppState,
    host_check: HostCheck,
    request: Request,
    next: Next,
) -> Response<Body> {
    let origin = allowed_origin(app, request.headers()).cloned();
    let mut response = match authorize(app, host_check, &request) {
        _ if origin.is_some() && is_preflight(&request) => preflight(&request),
        Ok(()) => next.run(request).await,
        Err(error) => rejection(error, &request),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("retry-after"),
        );
    }
    if !app.config.cors_origins.is_empty() {
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// The response to a request that is not allowed.
fn rejection(error: ApiError, request: &Request) -> Response<Body> {
    let is_unauthorized = error.status == StatusCode::UNAUTHORIZED;
    let mut response = error.into_response();
    if is_unauthorized {
        // Only pages prompt the browser for a password; API clients get a bearer challenge.
        let path = without_trailing_slash(request.uri().path());
        let is_page = matches!(path, "/" | "/explain");
        let challenge = if request.method() == Method::GET && is_page {
            "Basic realm=\"nextword: the API key is the password\""
        } else {
            "Bearer"
        };
        let challenge = HeaderValue::from_static(challenge);
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

fn authorize(app: &AppState, host_check: HostCheck, request: &Request) -> Result<(), ApiError> {
    if without_trailing_slash(request.uri().path()) == "/health" {
        return Ok(());
    }
    let headers = request.headers();
    if host_check == HostCheck::Loopback {
        check_host(app, headers)?;
    }
    check_origin(app, request)?;
    match &app.key {
        Some(key) if !presented_key(headers).is_some_and(|presented| key.matches(&presented)) => {
            Err(ApiError::unauthorized())
        }
        _ => Ok(()),
    }
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> &str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or("")
}

/// Prevents DNS rebinding: a page of another site whose host name resolves to this machine sends that
/// name as `Host`.
fn check_host(app: &AppState, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = text(headers, header::HOST);
    let is_named = |name: &String| {
        host.eq_ignore_ascii_case(name) || host_name(host).eq_ignore_ascii_case(name)
    };
    if !is_loopback(host) && !app.config.allow_hosts.iter().any(is_named) {
        return Err(ApiError::forbidden(
            "the `Host` header does not name this machine; hint: use http://localhost, or start the server with \
             --allow-host NAME",
        ));
    }
    Ok(())
}

/// Blocks requests from pages of other sites, by their `Origin`. Embedded resources such as images have
/// none, but browsers send `Sec-Fetch-Site`. Links to the page are allowed.
fn check_origin(app: &AppState, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    if allowed_origin(app, headers).is_some() {
        return Ok(());
    }
    let host = text(headers, header::HOST);
    let is_foreign = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|o| o.split_once("://"));
        origin.is_none_or(|(_, name)| name != host)
    };
    let site = text(headers, "sec-fetch-site");
    let is_page_link = request.method() == Method::GET
        && request.uri().path() == "/"
        && text(headers, "sec-fetch-mode") == "navigate"
        && text(headers, "sec-fetch-dest") == "document";
    let is_embedded = ["cross-site", "same-site"].contains(&site) && !is_page_link;
    if is_embedded || headers.get(header::ORIGIN).is_some_and(is_foreign) {
        return Err(ApiError::forbidden(
            "requests from other sites are blocked; hint: start the server with --cors-origin ORIGIN",
        ));
    }
    Ok(())
}

/// The request's `Origin`, if the configuration allows it.
fn allowed_origin<'h>(app: &AppState, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let mut allowed = app.config.cors_origins.iter();
    allowed.any(|allowed| origin == allowed).then_some(origin)
}

/// Whether this is a CORS preflight request, which carries no key.
fn is_preflight(request: &Request) -> bool {
    let method_header = header::ACCESS_CONTROL_REQUEST_METHOD;
    request.method() == Method::OPTIONS && request.headers().contains_key(method_header)
}

fn preflight(request: &Request) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let requested_headers = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    if let Some(requested_headers) = requested_headers {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            requested_headers.clone(),
        );
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(600));
    response
}

/// `host` without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether `host`, with or without a port, is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    let name = host_name(host);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_address = address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_address || name.eq_ignore_ascii_case("localhost")
}

/// The key of `Authorization: Bearer KEY`, or the password of `Authorization: Basic`, as browsers send it.
fn presented_key(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(decode_base64(rest.trim())?).ok()?;
    decoded
        .split_once(':')
        .map(|(_, password)| password.to_owned())
}

/// Decodes standard base64, with canonical padding and no trailing bits; `None` if it is malformed.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Reads a request body declared as JSON, within the limits of size and time.
pub(crate) async fn read_body(app: &AppState, request: Request) -> Result<Bytes, ApiError> {
    // Forms on other sites can send any other type without a CORS preflight.
    if !is_json(text(request.headers(), header::CONTENT_TYPE)) {
        return Err(ApiError::with_status(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the request body must be JSON; hint: send `Content-Type: application/json`",
        ));
    }
    let limit = app.config.max_body_bytes;
    let body = axum::body::to_bytes(request.into_body(), limit);
    let Ok(body) = tokio::time::timeout(app.config.body_timeout, body).await else {
        return Err(ApiError::with_status(
            StatusCode::REQUEST_TIMEOUT,
            "timed out while reading the request body",
        ));
    };
    body.map_err(|_| {
        ApiError::with_status(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is incomplete or larger than {limit} bytes"),
        )
    })
}

/// Whether a `Content-Type` is JSON, in any case and with any parameters.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or("").trim();
    kind.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_type_ignores_case_and_parameters() {
        for kind in ["application/json", "Application/JSON ; charset=utf-8"] {
            assert!(is_json(kind), "{kind}");
        }
        for kind in [
            "",
            "text/plain",
            "application/jsonx",
            "text/plain; application/json",
        ] {
            assert!(!is_json(kind), "{kind}");
        }
    }

    #[test]
    fn api_key_matches_only_itself() {
        let key = ApiKey::new("secret");
        assert!(key.matches("secret"));
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert!(!key.matches(wrong), "{wrong}");
        }
    }

    #[test]
    fn basic_password_is_read() {
        let mut headers = HeaderMap::new();
        // printf 'me:secret:x' | base64
        let value = HeaderValue::from_static("Basic bWU6c2VjcmV0Ong=");
        headers.insert(header::AUTHORIZATION, value);
        assert_eq!(presented_key(&headers).as_deref(), Some("secret:x"));
    }

    #[test]
    fn malformed_base64_is_rejected() {
        assert_eq!(decode_base64("Zg==").as_deref(), Some(&b"f"[..]));
        assert_eq!(decode_base64("Zm8=").as_deref(), Some(&b"fo"[..]));
        assert_eq!(decode_base64("Zm9v").as_deref(), Some(&b"foo"[..]));
        for malformed in [
            "!",        // not in the alphabet
            "Zm9v-_",   // the URL-safe alphabet
            "Z",        // an incomplete byte
            "Zg",       // missing padding
            "Zg=",      // incomplete padding
            "Zg===",    // too much padding
            "Zm9v=",    // padding of a complete group
            "Zm9v====", // a group of padding
            "Zg==Zg==", // padding inside
            "Zh==",     // nonzero trailing bits
            "Zm9=", "Zm 8=", // whitespace
            "=",
        ] {
            assert_eq!(decode_base64(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn loopback_hosts_are_recognized() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.0.0.5",
            "[::1]:1",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "localhost:x",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
