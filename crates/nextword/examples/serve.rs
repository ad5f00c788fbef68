//! Serves a model over HTTP: OpenAI's API, and a page to try it.
//!
//! `cargo run --release --example serve [MODEL [PORT]]`, then, in another terminal,
//! `curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "On a"}'`

#![allow(clippy::print_stdout)] // An example prints.

use nextword::prelude::*;
use nextword::server::{Config, LoadedModel, Server};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let built_in = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models/letters");
    let folder = args.next().unwrap_or_else(|| built_in.to_string());
    let port = args.next().map_or(Ok(8080), |port| port.parse::<u16>())?;

    let model = LanguageModel::open(folder)?;
    let served = LoadedModel::new("example".to_string(), model.generator().clone());
    let server = Server::new(vec![served], Config::default())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{} (Ctrl-C stops)", listener.local_addr()?);
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await; // Without a signal handler, it stops at once.
    };
    Ok(server.serve(listener, shutdown).await?)
}
