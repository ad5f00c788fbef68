//! The web page and other files embedded in the binary.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};

pub(crate) fn index() -> Response<Body> {
    file_response(
        include_str!("../page/index.html"),
        "text/html; charset=utf-8",
    )
}

pub(crate) fn style() -> Response<Body> {
    file_response(include_str!("../page/style.css"), "text/css; charset=utf-8")
}

pub(crate) fn script() -> Response<Body> {
    file_response(
        include_str!("../page/app.js"),
        "text/javascript; charset=utf-8",
    )
}

pub(crate) fn icon() -> Response<Body> {
    file_response(include_str!("../page/icon.svg"), "image/svg+xml")
}

pub(crate) fn file_response(content: impl Into<Body>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(content.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
