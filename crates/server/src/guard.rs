//! Who may ask, and what all responses carry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::AsHeaderName;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api_error::ApiError;
use crate::routes::{App, route_name};

/// The page may load and ask nothing but this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A key, as its hash: comparing takes as long whatever is compared.
#[derive(Clone, Debug)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    fn is(&self, given: &str) -> bool {
        self.0.ct_eq(&Self::new(given).0).into()
    }
}

/// Lets a request pass, or answers it with an error.
pub(crate) async fn guard(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let route = route_name(request.uri().path());
    let line = (app.config.log).map(|log| {
        let what = format!("{} {}", request.method(), request.uri().path());
        (log, what, Instant::now())
    });
    let origin = allowed_origin(&app, request.headers()).cloned();
    let mut response = match check(&app, &request) {
        _ if origin.is_some() && is_preflight(&request) => preflight(&request),
        Ok(()) => next.run(request).await,
        Err(error) => {
            let challenge = error.status == StatusCode::UNAUTHORIZED;
            let mut response = error.into_response();
            if challenge {
                // A browser asks for the key as a password, and only for the pages: a client that
                // brings a key is told nothing that it could not know.
                let is_page = matches!(route, "/" | "/explain");
                let asks = if request.method() == Method::GET && is_page {
                    "Basic realm=\"nextword: the API key is the password\""
                } else {
                    "Bearer"
                };
                let headers = response.headers_mut();
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(asks));
            }
            response
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
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
            HeaderValue::from_static("retry-after, x-ignored-params"),
        );
    }
    if !app.config.cors_origins.is_empty() {
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    if let Some((log, what, begin)) = line {
        let (status, ms) = (response.status().as_u16(), begin.elapsed().as_millis());
        log(&format!("{what} {status} {ms} ms"));
    }
    app.responses.count(route, response.status().as_u16());
    response
}

fn check(app: &App, request: &Request) -> Result<(), ApiError> {
    if request.uri().path() == "/health" {
        return Ok(());
    }
    let headers = request.headers();
    check_host(app, headers)?;
    check_origin(app, request)?;
    match &app.key {
        Some(key) if !given_key(headers).is_some_and(|given| key.is(&given)) => {
            Err(ApiError::unauthorized())
        }
        _ => Ok(()),
    }
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> &str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or("")
}

/// A web page elsewhere must not reach this server by a name that suddenly points here: the `Host` is
/// then that name.
fn check_host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = text(headers, header::HOST);
    let is_named = |name: &String| {
        host.eq_ignore_ascii_case(name) || host_name(host).eq_ignore_ascii_case(name)
    };
    if app.only_loopback && !is_loopback(host) && !app.config.allow_hosts.iter().any(is_named) {
        return Err(ApiError::forbidden(
            "the `Host` is not this machine's; hint: use http://localhost, or start the server with --allow-host NAME",
        ));
    }
    Ok(())
}

/// Nor directly: the `Origin` is then that page's. What a page embeds, as an image, comes without one,
/// but browsers say where from. A link to the page is harmless.
fn check_origin(app: &App, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    if allowed_origin(app, headers).is_some() {
        return Ok(());
    }
    let host = text(headers, header::HOST);
    let is_other = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|o| o.split_once("://"));
        origin.is_none_or(|(_, name)| name != host)
    };
    let from = text(headers, "sec-fetch-site");
    let opens_page = request.method() == Method::GET
        && request.uri().path() == "/"
        && text(headers, "sec-fetch-mode") == "navigate"
        && text(headers, "sec-fetch-dest") == "document";
    let embeds = ["cross-site", "same-site"].contains(&from) && !opens_page;
    if embeds || headers.get(header::ORIGIN).is_some_and(is_other) {
        return Err(ApiError::forbidden(
            "pages of other sites may not ask this server; hint: start it with --cors-origin ORIGIN",
        ));
    }
    Ok(())
}

/// The request's `Origin`, if the server was told to let it in.
fn allowed_origin<'h>(app: &App, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let mut allowed = app.config.cors_origins.iter();
    allowed.any(|allowed| origin == allowed).then_some(origin)
}

/// A browser asks what a page may send. It brings no key.
fn is_preflight(request: &Request) -> bool {
    let asks = header::ACCESS_CONTROL_REQUEST_METHOD;
    request.method() == Method::OPTIONS && request.headers().contains_key(asks)
}

fn preflight(request: &Request) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let asked = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    if let Some(asked) = asked {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
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

/// Whether `host`, with or without a port, names this machine to itself. An address is no name that
/// could be made to point elsewhere.
fn is_loopback(host: &str) -> bool {
    let name = host_name(host);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_address = address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_address || name.eq_ignore_ascii_case("localhost")
}

/// The key of `Authorization: Bearer KEY`, or the password of `Basic`, as browsers send it.
fn given_key(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(base64(rest.trim())?).ok()?;
    decoded
        .split_once(':')
        .map(|(_, password)| password.to_owned())
}

/// Decodes standard base64; `None` if it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for c in digits.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

/// A request's body, which says that it is JSON, within the limits of size and time.
pub(crate) async fn read_body(app: &App, request: Request) -> Result<Bytes, ApiError> {
    // Forms of other sites can send everything but this without being asked first.
    if !is_json(text(request.headers(), header::CONTENT_TYPE)) {
        return Err(ApiError::with_status(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be JSON; hint: send `Content-Type: application/json`",
        ));
    }
    let limit = app.config.body_bytes;
    let body = axum::body::to_bytes(request.into_body(), limit);
    let Ok(body) = tokio::time::timeout(app.config.body_time, body).await else {
        return Err(ApiError::with_status(
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long to arrive",
        ));
    };
    body.map_err(|_| {
        ApiError::with_status(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is cut off or larger than {limit} bytes"),
        )
    })
}

/// Whether a `Content-Type` is JSON's, in any case and with any parameters.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or("").trim();
    kind.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_is_read_in_any_case() {
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
    fn only_the_key_itself_opens() {
        let key = Key::new("secret");
        assert!(key.is("secret"));
        for wrong in ["", "secre", "secrets", "Secret"] {
            assert!(!key.is(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_browsers_password_is_read() {
        let mut headers = HeaderMap::new();
        // printf 'me:secret:x' | base64
        let value = HeaderValue::from_static("Basic bWU6c2VjcmV0Ong=");
        headers.insert(header::AUTHORIZATION, value);
        assert_eq!(given_key(&headers).as_deref(), Some("secret:x"));
        assert_eq!(base64("!"), None);
    }

    #[test]
    fn names_of_this_machine_are_told_from_others() {
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
