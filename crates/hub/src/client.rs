//! Requests: redirects, tokens, timeouts and repetitions. What a server answers is untrusted.

use std::cell::Cell;
use std::fmt::Display;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::settings::{HubSettings, Token};
use crate::url::Url;
use crate::{HubError, HubEvent};

/// Maximum number of redirects in a row.
const MAX_REDIRECTS: usize = 10;

/// Maximum number of attempts without progress.
const MAX_ATTEMPTS: u32 = 5;

/// The longest pause between two attempts, also if a server asks for more.
const MAX_DELAY: Duration = Duration::from_mins(1);

/// Time for the name of a host, and for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum length of a server's message in an error.
const MAX_MESSAGE: usize = 200;

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection could be made.
    Unreachable(String),
    /// The connection broke, or was silent for too long.
    Interrupted(String),
    /// The server answers with an error.
    Status(Box<StatusFailure>),
    /// The content of a file has another hash than stated.
    WrongContent { file: String, what: &'static str },
    /// Repetition is pointless: an invalid answer, or an error on this side.
    Final(HubError),
}

/// An error status with what the server says about it.
#[derive(Debug)]
pub(crate) struct StatusFailure {
    pub(crate) url: Url,
    pub(crate) status: u16,
    /// The Hub's name for the error, such as `GatedRepo`.
    pub(crate) code: String,
    pub(crate) message: String,
    retry_after: Option<Duration>,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// Sends requests to the Hub and follows its redirects.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: Url,
    token: Option<Token>,
    retry_delay: Duration,
    /// Time for a whole answer that is read into memory.
    read_timeout: Duration,
    /// Whether any request had an answer. Until then, a failed connection means being offline, and is not repeated.
    is_connected: Cell<bool>,
}

impl Client {
    /// Prepares requests; nothing is sent yet.
    pub(crate) fn new(settings: &HubSettings) -> Result<Self, HubError> {
        let mut config = Agent::config_builder()
            .user_agent(concat!("nextword/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // Sizes and hashes are those of the file itself.
            .http_status_as_error(false)
            .max_redirects(0) // They are followed here, where the token is decided on.
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(2 * settings.stall_timeout))
            .timeout_per_read(Some(settings.stall_timeout))
            .timeout_per_write(Some(settings.stall_timeout));
        if let Some(path) = &settings.certificates {
            config = config.tls_config(TlsConfig::builder().root_certs(read_roots(path)?).build());
        }
        if !settings.use_proxy {
            config = config.proxy(None);
        }
        let endpoint = Url::parse(&settings.endpoint)
            .map_err(|problem| HubError::server(&settings.endpoint, problem))?;
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint,
            token: settings.token.clone(),
            retry_delay: settings.retry_delay,
            read_timeout: 4 * settings.stall_timeout,
            is_connected: Cell::new(false),
        })
    }

    /// Whether requests carry a token.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a request with the header fields `fields` and follows redirects until a successful answer, or until an
    /// answer for which `is_last` holds.
    pub(crate) fn send(
        &self,
        method: &Method,
        url: &Url,
        fields: &[(&str, String)],
        is_last: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(Uri::from(&url));
            for (name, value) in fields {
                request = request.header(*name, value);
            }
            // A server that a redirect leads to is not the one that the token is for.
            if let Some(token) = &self.token
                && url.is_same_server(&self.endpoint)
            {
                request = request.header("authorization", token.header());
            }
            let request = request.body(()).map_err(|error| invalid(&url, &error))?;
            let response = self.agent.run(request).map_err(|e| classify(&url, e))?;
            self.is_connected.set(true);
            let status = response.status();
            if status.is_success() || (status.is_redirection() && is_last(response.headers())) {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(status_failure(url, &response));
            }
            let location = response.headers().get("location");
            let location = location.and_then(|location| location.to_str().ok());
            let location = location.ok_or_else(|| {
                HubError::server(
                    &url,
                    "redirects without a valid address; hint: try again later",
                )
            })?;
            url = url.join(location).map_err(|problem| {
                let problem =
                    format!("redirects to an address that {problem}; hint: check HF_ENDPOINT");
                HubError::server(&url, problem)
            })?;
        }
        let problem = format!(
            "redirects more than {MAX_REDIRECTS} times; hint: check HF_ENDPOINT and the proxy"
        );
        Err(HubError::server(&url, problem).into())
    }

    /// Reads the whole body of the answer to a GET request, if it has at most `limit` bytes.
    pub(crate) fn read(&self, url: &Url, limit: u64) -> Result<Vec<u8>, Failure> {
        let start = Instant::now();
        let response = self.send(&Method::GET, url, &[], |_| false)?;
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(limit + 1);
        let mut chunk = vec![0; 1 << 16];
        loop {
            let count = body.read(&mut chunk);
            match count.map_err(|error| Failure::Interrupted(error.to_string()))? {
                0 => break,
                count => bytes.extend_from_slice(&chunk[..count]),
            }
            if start.elapsed() > self.read_timeout {
                let host = url.host();
                return Err(Failure::Interrupted(format!("{host} answers too slowly")));
            }
        }
        if bytes.len() as u64 > limit {
            let problem = format!(
                "answers with more than {} MiB; hint: check HF_ENDPOINT",
                limit >> 20
            );
            return Err(HubError::server(url, problem).into());
        }
        Ok(bytes)
    }

    /// Repeats `attempt` after failures that may pass, with growing pauses. It returns whether it made progress
    /// before it failed, in which case the attempts are counted from the start.
    pub(crate) fn with_retries<T>(
        &self,
        on_event: &mut dyn FnMut(&HubEvent<'_>),
        mut attempt: impl FnMut(&mut dyn FnMut(&HubEvent<'_>)) -> Result<T, (Failure, bool)>,
    ) -> Result<T, Failure> {
        let mut failures = 0;
        loop {
            let (failure, has_progress) = match attempt(on_event) {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            failures = if has_progress { 1 } else { failures + 1 };
            let (problem, wait) = match &failure {
                Failure::Unreachable(problem) if self.is_connected.get() => (problem.clone(), None),
                Failure::Interrupted(problem) => (problem.clone(), None),
                Failure::Status(failed) if matches!(failed.status, 408 | 429 | 500 | 502..=504) => {
                    (format!("status {}", failed.status), failed.retry_after)
                }
                _ => return Err(failure),
            };
            if failures >= MAX_ATTEMPTS {
                return Err(failure);
            }
            let delay = wait.unwrap_or(self.retry_delay * (1 << (failures - 1)));
            let delay = delay.min(MAX_DELAY);
            on_event(&HubEvent::Retry {
                problem: &problem,
                delay,
            });
            std::thread::sleep(delay);
        }
    }
}

/// Reads root certificates from a PEM file.
fn read_roots(path: &Path) -> Result<RootCerts, HubError> {
    let pem = fs::read(path).map_err(HubError::io(path, "read"))?;
    let mut roots = Vec::new();
    for item in parse_pem(&pem) {
        if let Ok(PemItem::Certificate(certificate)) = item {
            roots.push(certificate);
        }
    }
    if roots.is_empty() {
        let shown = path.display();
        return Err(HubError::Setting {
            variable: "SSL_CERT_FILE",
            problem: format!(
                "names {shown}, which contains no certificate in PEM format; hint: remove the variable, or \
                 correct the file"
            ),
        });
    }
    Ok(RootCerts::new_with_certs(&roots))
}

fn invalid(url: &Url, error: &impl Display) -> Failure {
    let problem = format!("cannot be requested: {error}");
    HubError::server(url, problem).into()
}

/// What an error of the HTTP library means here.
fn classify(url: &Url, error: ureq::Error) -> Failure {
    use ureq::{Error, Timeout};
    let host = url.host();
    match error {
        Error::HostNotFound => Failure::Unreachable(format!("the address of {host} is unknown")),
        Error::ConnectionFailed => Failure::Unreachable(format!("{host} does not answer")),
        Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            Failure::Unreachable(format!("{host} does not answer in time"))
        }
        Error::Timeout(_) => Failure::Interrupted(format!("{host} sent nothing for too long")),
        Error::Io(error) => match error.kind() {
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => Failure::Interrupted(format!("{host}: {error}")),
            // A certificate that is not trusted, for one.
            ErrorKind::InvalidData => invalid_tls(url, &error),
            // Also the failure to find a name, which has no kind of its own.
            _ => Failure::Unreachable(format!("{host}: {error}")),
        },
        Error::Rustls(error) => invalid_tls(url, &error),
        error => {
            let problem =
                format!("has no valid answer ({error}); hint: check HF_ENDPOINT and the proxy");
            HubError::server(url, problem).into()
        }
    }
}

fn invalid_tls(url: &Url, error: &impl Display) -> Failure {
    let problem = format!(
        "has no valid TLS connection ({error}); hint: behind a proxy that decrypts connections, set SSL_CERT_FILE to \
         its certificate"
    );
    HubError::server(url, problem).into()
}

fn status_failure(url: Url, response: &Response<Body>) -> Failure {
    let field = |name: &str| {
        let value = response.headers().get(name);
        let value = value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        value.chars().take(MAX_MESSAGE).collect::<String>()
    };
    let retry_after = field("retry-after").trim().parse().ok();
    Failure::Status(Box::new(StatusFailure {
        status: response.status().as_u16(),
        code: field("x-error-code"),
        message: field("x-error-message"),
        retry_after: retry_after.map(Duration::from_secs),
        url,
    }))
}
