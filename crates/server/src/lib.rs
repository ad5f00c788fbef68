//! An OpenAI-compatible HTTP server for nextword models, with a web page.
//!
//! | for | see |
//! |---|---|
//! | a loaded model and its name | [`LoadedModel`] |
//! | the address and all limits | [`Config`] |
//! | the server | [`serve`] |
//!
//! Each model and its KV cache are owned by one engine thread (`engine`). Requests join and leave its
//! batch between steps. When a client disconnects, its completions are cancelled. All request
//! parameters are bounds-checked before memory is allocated for them.

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod api_error;
mod chat_template;
mod connection;
mod engine;
mod error;
mod explain;
mod explain_cache;
mod limiter;
mod listen;
mod loaded_model;
mod metrics;
mod middleware;
mod output;
mod page;
mod panics;
mod params;
mod parse;
mod response;
mod routes;
mod stream;
mod strftime;
mod tokens;

use std::time::Duration;

pub use chat_template::{ChatTemplate, Message};
pub use error::ServerError;
pub use listen::{ServerEvent, serve};
pub use loaded_model::LoadedModel;

/// The address and the limits of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to listen on. Any address other than loopback requires an API key.
    pub host: String,
    /// Port to listen on; 0 picks a free port.
    pub port: u16,
    /// Additional `Host` names to accept, for a proxy in front of the server.
    pub allow_hosts: Vec<String>,
    /// Origins (`https://app.example`) whose pages may send requests, besides the server's own.
    pub cors_origins: Vec<String>,
    /// Called with one line per request: method, path, status, and time until the response headers.
    pub log: Option<fn(&str)>,
    /// API key that clients must send, as `Authorization: Bearer KEY` or as a Basic password.
    pub api_key: Option<String>,
    /// Maximum concurrent completions per model; fewer if `cache_bytes` is too small.
    pub slots: usize,
    /// Memory for each model's KV cache, in bytes.
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
    /// How long in-flight requests may take to finish after a shutdown signal.
    pub shutdown_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            allow_hosts: Vec::new(),
            cors_origins: Vec::new(),
            log: None,
            api_key: None,
            slots: 16,
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
