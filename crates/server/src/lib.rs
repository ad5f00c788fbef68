//! An OpenAI-compatible HTTP server for nextword models, with a web page.
//!
//! | for | see |
//! |---|---|
//! | a loaded model and its name | [`LoadedModel`] |
//! | an adapter that shares the weights of a model | [`LoadedAdapter`], [`Adapters`] |
//! | access rules and limits | [`Config`] |
//! | the server, on a listener or as an axum router | [`Server`] |
//!
//! Each model and its KV cache are owned by one engine thread (`engine`). Requests join and leave its
//! batch between steps. When a client disconnects, its completions are cancelled. All request
//! parameters are bounds-checked before memory is allocated for them.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use burn::tensor::Device;
//! use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
//! use nextword_generate::TextGenerator;
//! use nextword_model::{ModelCard, ModelConfig};
//! use nextword_server::{Config, LoadedModel, Server};
//! use tokio::net::TcpListener;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // An untrained model; `LoadedModel::open` loads a model folder.
//! let tokenizer = TokenizerConfig { kind: TokenizerKind::Byte, ..TokenizerConfig::default() };
//! let tokenizer = build_tokenizer(&tokenizer, std::iter::empty())?;
//! let config = ModelConfig {
//!     vocab_size: tokenizer.vocab_size(),
//!     context_length: 16,
//!     n_layers: 1,
//!     n_heads: 2,
//!     d_model: 8,
//!     ..ModelConfig::default()
//! };
//! let model = config.init(&Device::flex(), 1)?;
//! let generator = TextGenerator::new(model, tokenizer, ModelCard::default())?;
//!
//! let server = Server::new(vec![LoadedModel::new("tiny", generator)], Config::default())?;
//! let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//! let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?; // Any free port.
//! let address = listener.local_addr()?;
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let serving = runtime.spawn(server.serve(listener, async { drop(stopped.await) }));
//!
//! let mut client = std::net::TcpStream::connect(address)?;
//! client.write_all(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
//! let mut response = String::new();
//! client.read_to_string(&mut response)?;
//! assert!(response.contains("\"id\":\"tiny\""));
//!
//! drop(stop); // Ends the server after the requests in flight.
//! runtime.block_on(serving)??;
//! # Ok(())
//! # }
//! ```
//!
//! The server has no output of its own: requests, errors and shutdown are [`tracing`] events with the target
//! `nextword_server` (requests at `INFO`, steps of the engines at `DEBUG`). Signals and the runtime are the
//! program's.

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod api_error;
mod architecture;
mod config;
mod connection;
mod embeddings;
mod engine;
mod error;
mod explain;
mod explain_cache;
mod limiter;
mod listen;
mod loaded_adapter;
mod loaded_model;
mod messages;
mod metrics;
mod middleware;
mod models;
mod openapi;
mod output;
mod page;
mod panics;
mod params;
mod parse;
mod response;
mod routes;
mod server;
mod stream;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_model;
mod tokens;
mod watch;

pub use config::Config;
pub use error::ServerError;
pub use loaded_adapter::LoadedAdapter;
pub use loaded_model::{LoadedModel, open_chat_template};
pub use models::Adapters;
pub use server::{AbortHandle, Server};
pub use watch::{MetricsPosition, RunSource};
