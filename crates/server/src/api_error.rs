//! Error responses in OpenAI's format.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

/// An error response: HTTP status and the fields of OpenAI's `error` object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
        }
    }

    /// 400 without a specific field.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400 for the field `param`.
    pub(crate) fn invalid_field(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::bad_request(message)
        }
    }

    /// 400: the request needs more tokens than the model's context has.
    pub(crate) fn context_length_exceeded(param: &str, message: impl Into<String>) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            ..Self::invalid_field(param, message)
        }
    }

    pub(crate) fn unauthorized() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "missing or incorrect API key; hint: send it as `Authorization: Bearer KEY`",
            )
        }
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    pub(crate) fn unknown_model(name: &str, available: &[String]) -> Self {
        let shown: String = name.chars().take(80).collect();
        Self {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::not_found(format!(
                "no model named {shown:?}; hint: available models: {}",
                available.join(", ")
            ))
        }
    }

    pub(crate) fn with_status(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// 429: the queue is full.
    pub(crate) fn queue_full() -> Self {
        Self {
            code: Some("queue_full"),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "the request queue is full; hint: try again in a second",
            )
        }
    }

    /// 503 with `message`.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            message,
        )
    }

    /// 503: the server is shutting down.
    pub(crate) fn shutting_down() -> Self {
        Self::unavailable("the server is shutting down")
    }

    /// 503: the engine dropped the completion.
    pub(crate) fn aborted() -> Self {
        Self::unavailable(
            "the completion was aborted: the server is shutting down or had an internal error",
        )
    }

    /// 408: the client stopped reading its response.
    pub(crate) fn slow_client() -> Self {
        Self::with_status(
            StatusCode::REQUEST_TIMEOUT,
            "the completion was aborted: the client stopped reading the response",
        )
    }

    /// 500: the code that served the request panicked.
    pub(crate) fn panicked() -> Self {
        Self::internal("internal server error (a bug in nextword)")
    }

    /// 500 with `message`.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, self.to_json().to_string());
        let headers = response.headers_mut();
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A response with the given JSON body.
pub(crate) fn json_response(status: StatusCode, json: String) -> Response<Body> {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
