//! `nextword serve RECORD|RUN...`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use nextword_server::{Config, Served, Stage, serve};

use crate::{learning, output, records};

/// Where a key may stand beside the command line, which other users of a machine can read.
const KEY: &str = "NEXTWORD_API_KEY";

/// `serve RECORD|RUN...`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Records, checkpoints, or runs' folders (their best records are used); NAME=PATH gives one
    /// another name than its run's
    #[arg(required = true, value_hint = ValueHint::DirPath)]
    models: Vec<PathBuf>,
    /// The address; all but this machine's own need an API key
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes a free one
    #[arg(long, short, default_value_t = 8080)]
    port: u16,
    /// What clients must send, as a bearer token or as a browser's password [default: the
    /// environment's `NEXTWORD_API_KEY`, else none]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Another name of this server, which a proxy on this machine sends as `Host` (repeatable). The
    /// proxy must see to who may ask
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Pages of this origin may ask too, as `https://app.example` (repeatable)
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    cors_origin: Vec<String>,
    /// Writes a line to standard error for each request: method, path, status, time to its head
    #[arg(long, short)]
    verbose: bool,
    /// Answers of a model that are made at once
    #[arg(long, default_value_t = 16, value_name = "N")]
    slots: usize,
    /// Memory for each model's keys and values, in MiB; fewer slots are used if they do not fit
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    cache_mib: u64,
    /// Answers that may wait for a slot
    #[arg(long, default_value_t = 256, value_name = "N")]
    queue: usize,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    device: String,
    /// Uses the last records of runs instead of the best
    #[arg(long)]
    last: bool,
}

/// Serves records until the process is asked to stop.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let api_key = args.api_key.clone().or_else(|| std::env::var(KEY).ok());
    let config = Config {
        host: args.host.clone(),
        port: args.port,
        allow_hosts: args.allow_host.clone(),
        cors_origins: args.cors_origin.clone(),
        log: args.verbose.then_some(output::note),
        api_key: api_key.filter(|key| !key.is_empty()),
        slots: args.slots,
        cache_bytes: args.cache_mib << 20,
        queue: args.queue,
        ..Config::default()
    };
    let device = records::device(&args.device)?;
    let mut models = Vec::new();
    for given in &args.models {
        let (name, path) = split(given);
        let record = records::open(path, args.last)?;
        let name = name.unwrap_or_else(|| name_of(path, &record.card.name));
        let mut served = Served::open(name, &record, &device)?;
        if learning::is_kept(path) {
            match learning::read(path) {
                Ok(learning) => served = served.with_learning(learning),
                Err(error) => output::note(&format!("warning: {error:#}")),
            }
        }
        if let Some(warning) = served.warning() {
            output::note(&format!("warning: {warning}"));
        }
        models.push(served);
    }
    serve(models, config, |stage| match stage {
        Stage::Listening(address) => {
            output::note(&format!("listening on http://{address} (Ctrl-C stops)"));
        }
        Stage::Stopping => {
            output::note("finishing the answers under way; once more stops at once");
        }
    })?;
    output::note("stopped");
    Ok(())
}

/// An origin, as browsers write it: scheme and host in small letters, without a path.
fn origin(given: &str) -> Result<String, String> {
    let (scheme, name) = given.split_once("://").unwrap_or_default();
    let is_origin = !scheme.is_empty() && !name.is_empty() && !name.contains(['/', '*', ' ']);
    if is_origin {
        return Ok(given.to_ascii_lowercase());
    }
    Err("an origin is a scheme and a host, as https://app.example or http://localhost:3000".into())
}

/// `NAME=PATH`, unless a folder is named so.
fn split(given: &Path) -> (Option<String>, &Path) {
    let parts = given.to_str().and_then(|text| text.split_once('='));
    match parts.filter(|(name, _)| !name.is_empty() && !given.exists()) {
        Some((name, path)) => (Some(name.to_owned()), Path::new(path)),
        None => (None, given),
    }
}

/// The run's name, else the folder's.
fn name_of(path: &Path, run: &str) -> String {
    if !run.is_empty() {
        return run.to_owned();
    }
    let folder = path.canonicalize().ok();
    let name = folder.as_deref().and_then(Path::file_name);
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
