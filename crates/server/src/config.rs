//! The limits of a server.

use std::time::Duration;

/// Access rules and limits of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// API key that clients must send, as `Authorization: Bearer KEY` or as a Basic password.
    pub api_key: Option<String>,
    /// Additional `Host` names to accept, for a proxy in front of the server.
    pub allow_hosts: Vec<String>,
    /// Origins (`https://app.example`) whose pages may send requests, besides the server's own.
    pub cors_origins: Vec<String>,
    /// Name of the model for requests that name none, which can be an adapter. Otherwise it is the first model.
    pub default_model: Option<String>,
    /// Maximum concurrent completions per model, with those of its adapters. Fewer run while `cache_bytes` is used up.
    pub slots: usize,
    /// Memory for each model's KV cache, in bytes: at least that of one whole context. It is divided into
    /// pages, which completions take as they grow and share where they begin with the same tokens. In encoder-decoder
    /// models half of it is for the sources, of which each slot may hold a whole context: fewer slots may fit.
    pub cache_bytes: u64,
    /// Maximum number of completions waiting for a slot, per model.
    pub queue: usize,
    /// Maximum size of a request body, in bytes.
    pub max_body_bytes: usize,
    /// Maximum open connections; further ones wait to be accepted.
    pub max_connections: usize,
    /// Timeout for reading request headers.
    pub header_timeout: Duration,
    /// Timeout for an idle keep-alive connection; longer than the keep-alive of common clients.
    pub idle_timeout: Duration,
    /// Timeout for reading a request body.
    pub body_timeout: Duration,
    /// Timeout for a client that stops reading.
    pub write_timeout: Duration,
    /// How long in-flight requests may take to finish after a shutdown was requested.
    pub shutdown_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_key: None,
            allow_hosts: Vec::new(),
            cors_origins: Vec::new(),
            default_model: None,
            slots: 64,
            cache_bytes: 1 << 30,
            queue: 256,
            max_body_bytes: 1 << 20,
            max_connections: 512,
            header_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(1),
            body_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}
