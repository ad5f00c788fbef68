//! Records behind HTTP, as OpenAI's clients expect it, with a page of its own.
//!
//! | to read | open |
//! |---|---|
//! | a record under its name | [`Served`] |
//! | where to listen, and all limits | [`Config`] |
//! | the server | [`serve`] |
//!
//! One thread owns each model and its cache (`engine`); requests join and leave its batch between
//! steps. A client that goes away takes its answer with it. Everything that a request may ask for is
//! bounded before memory is taken for it.

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod answer;
mod api_error;
mod chat_template;
mod connection;
mod desk;
mod engine;
mod error;
mod explain;
mod guard;
mod listen;
mod metrics;
mod page;
mod params;
mod prepare;
mod reply;
mod routes;
mod served;
mod stream;
mod strftime;
mod tokens;
mod turns;

use std::time::Duration;

pub use chat_template::{ChatTemplate, Message};
pub use error::ServerError;
pub use listen::{Stage, serve};
pub use served::Served;

/// Where a server listens, and what it bears.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address; all but loopback ones need an API key.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Names of this server beside this machine's own, which a proxy in front of it may send as `Host`.
    pub allow_hosts: Vec<String>,
    /// Pages of these origins (`https://app.example`) may ask; of others only the server's own.
    pub cors_origins: Vec<String>,
    /// Is given a line for each request: method, path, status, and how long its head took.
    pub log: Option<fn(&str)>,
    /// What clients must send, as `Authorization: Bearer KEY` or as a password.
    pub api_key: Option<String>,
    /// Answers of a model that are made at once, as far as `cache_bytes` allow.
    pub slots: usize,
    /// Memory for a model's keys and values.
    pub cache_bytes: u64,
    /// Answers that may wait for a slot.
    pub queue: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Connections at once; others wait to be accepted.
    pub connections: usize,
    /// For a request's head.
    pub head_time: Duration,
    /// For the next request of a connection to begin: longer than clients keep theirs.
    pub idle_time: Duration,
    /// For a request's body.
    pub body_time: Duration,
    /// For a client that does not read what it is sent.
    pub write_time: Duration,
    /// For answers under way when the server is asked to stop.
    pub drain_time: Duration,
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
            body_bytes: 1 << 20,
            connections: 512,
            head_time: Duration::from_secs(5),
            idle_time: Duration::from_mins(1),
            body_time: Duration::from_secs(15),
            write_time: Duration::from_secs(30),
            drain_time: Duration::from_secs(30),
        }
    }
}
