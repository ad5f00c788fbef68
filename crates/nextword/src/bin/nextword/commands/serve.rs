//! `nextword serve MODEL|RUN...`.

mod adapters;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use burn::tensor::Device;
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_model::{AdapterDir, ModelDir};
use nextword_server::{Adapters, Config, LoadedModel, Server, ServerError};
use tokio::net::TcpListener;

use self::adapters::{AdapterSources, Loaded, Source};
use crate::args::{BaseArgs, DecodingArgs, MappingArgs};
use crate::format::sanitize;
use crate::signals::{HangupSignal, StopSignals};
use crate::{exit, history, models, output};

/// Environment variable for the API key, since other users of a machine can read its command lines.
const API_KEY_VARIABLE: &str = "NEXTWORD_API_KEY";

/// `serve MODEL|RUN...`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Model folders, adapter folders, checkpoints, run folders (the best model of each run is used), or GGUF
    /// files; NAME=PATH overrides a model's name. Adapters share the weights, slots and memory of their base
    #[arg(required = true, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    models: Vec<PathBuf>,
    /// Also serve the adapters in this folder, each by the name of its own folder. SIGHUP reads all adapters again:
    /// new requests use the new ones, while those in progress finish with the earlier ones
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    adapters: Option<PathBuf>,
    /// Address to listen on; any but a loopback address requires an API key
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 picks a free port
    #[arg(long, short, default_value_t = 8080)]
    port: u16,
    /// API key that clients must send (bearer token, or password in a browser) [default: the
    /// environment variable `NEXTWORD_API_KEY`, else none]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Accept this name in the `Host` header, for a proxy on this machine (repeatable). Access
    /// control is then up to the proxy
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Allow browser requests from this origin, e.g. `https://app.example` (repeatable)
    #[arg(long, value_name = "ORIGIN", value_parser = parse_origin)]
    cors_origin: Vec<String>,
    /// Maximum concurrent completions per model and its adapters. They share the memory of --cache-mib; when it is used up,
    /// new ones wait, and the newest of the running ones are recomputed later
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    slots: usize,
    /// KV cache size per model, in MiB, at least that of one whole context. Memory is taken page by page as
    /// completions grow; prompts that begin with the same tokens share pages
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(1..=1 << 30))]
    cache_mib: u64,
    /// Maximum number of requests waiting for a slot
    #[arg(long, default_value_t = 256, value_name = "N")]
    queue: usize,
    #[command(flatten)]
    decoding: DecodingArgs,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    device: String,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    mapping: MappingArgs,
    /// Use the runs' last models instead of their best
    #[arg(long)]
    last: bool,
}

/// Serves models until the process receives a stop signal.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let config = config(args);
    if config.api_key.is_none() && !is_loopback(&args.host) {
        let host = args.host.clone();
        return Err(ServerError::ApiKeyRequired { host }.into());
    }
    let device = models::open_and_name_device(&args.device)?;
    let (loaded, default_model) = load_all(args, &device)?;
    let config = Config {
        default_model,
        ..config
    };
    exit::leave_panics_to_the_server();
    let server = Server::new(loaded.models, config)?;
    server.adapters().replace(loaded.adapters, &[])?;
    // The engines have threads of their own, and requests are parsed on blocking threads.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(ServerError::from)?;
    let result = runtime.block_on(serve(server, loaded.sources, &args.host, args.port));
    // An aborted explanation or step may still be running.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result?;
    output::eprint_line("stopped");
    Ok(())
}

fn config(args: &ServeArgs) -> Config {
    let api_key = args.api_key.clone();
    let api_key = api_key.or_else(|| std::env::var(API_KEY_VARIABLE).ok());
    // The name by which other machines know this one may stand for a loopback address here.
    let mut allow_hosts = args.allow_host.clone();
    allow_hosts.push(args.host.clone());
    Config {
        allow_hosts,
        cors_origins: args.cors_origin.clone(),
        api_key: api_key.filter(|key| !key.is_empty()),
        slots: args.slots,
        cache_bytes: args.cache_mib << 20,
        queue: args.queue,
        ..Config::default()
    }
}

/// Serves until the first stop signal, and then until all requests are done or the second one.
async fn serve(
    server: Server,
    sources: AdapterSources,
    host: &str,
    port: u16,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind((host, port))
        .await
        .map_err(|error| listen_error(host, port, &error))?;
    let mut signals = StopSignals::new().map_err(ServerError::from)?;
    if sources.are_watched() {
        let hangup = HangupSignal::new().map_err(ServerError::from)?;
        tokio::spawn(reload_on(hangup, Arc::new(sources), server.adapters()));
    }
    let address = listener.local_addr().map_err(ServerError::from)?;
    output::eprint_line(&format!("listening on http://{address} (Ctrl-C stops)"));
    let abort = server.abort_handle();
    let shutdown = async move {
        signals.recv().await;
        output::eprint_line(
            "finishing requests in progress; press Ctrl-C again to stop immediately",
        );
        tokio::spawn(async move {
            signals.recv().await;
            abort.abort();
        });
    };
    Ok(server.serve(listener, shutdown).await?)
}

/// Reads the adapters again at each signal.
async fn reload_on(mut hangup: HangupSignal, sources: Arc<AdapterSources>, adapters: Adapters) {
    loop {
        hangup.recv().await;
        let (sources, adapters) = (sources.clone(), adapters.clone());
        let reload = move || sources.reload(&adapters);
        // A panic was reported when it happened.
        let _ = tokio::task::spawn_blocking(reload).await;
    }
}

/// The error for an address on which the server cannot listen.
pub(super) fn listen_error(host: &str, port: u16, error: &std::io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::AddrInUse => {
            let hint = "another program uses this port; choose another --port, or 0 for a free one";
            return anyhow!("cannot listen on {host}:{port}: {error}; hint: {hint}");
        }
        ErrorKind::AddrNotAvailable => {
            "this machine has no such address; use --host 127.0.0.1 for this machine only, or 0.0.0.0 for all \
             its addresses"
        }
        ErrorKind::PermissionDenied => "choose a --port of 1024 or more",
        _ => "choose another --host: an address or a name of this machine",
    };
    exit::usage(format!(
        "cannot listen on {host}:{port}: {error}; hint: {hint}"
    ))
}

/// Loads the models and adapters of all arguments. Returns also the name of the first one.
fn load_all(args: &ServeArgs, device: &Device) -> anyhow::Result<(Loaded, Option<String>)> {
    let (mut loaded, mut adapters, mut first) = (Vec::new(), Vec::new(), None);
    for argument in &args.models {
        let (name, path) = split_name(argument);
        let found = models::find(path, args.last)?;
        if AdapterDir::is_adapter(&found) {
            let card = AdapterDir::open(&found)?.card;
            let name = name.unwrap_or_else(|| default_name(path, &card.name));
            first.get_or_insert_with(|| name.clone());
            let path = path.to_path_buf();
            adapters.push(Source { name, path });
            continue;
        }
        let dir = args.mapping.apply(models::open(path, args.last)?);
        let name = name.unwrap_or_else(|| default_name(path, &dir.card.name));
        first.get_or_insert_with(|| name.clone());
        let model = args.open_model(name, &dir, device)?;
        let model = with_history(model.with_alias(&*dir.card.name), path);
        announce(&model, "");
        loaded.push((model, dir));
    }
    let loaded = AdapterSources::load(args, loaded, adapters, device)?;
    Ok((loaded, first))
}

impl ServeArgs {
    /// Loads the model of `dir` as `name`, to be decoded as the arguments say.
    fn open_model(
        &self,
        name: String,
        dir: &ModelDir,
        device: &Device,
    ) -> anyhow::Result<LoadedModel> {
        let model = LoadedModel::open(name, dir, device)?;
        model.map_generator(|generator| self.decoding.apply(generator, device, self.mapping))
    }
}

/// Adds the training history of the run in `path` to its model, if there is one.
fn with_history(model: LoadedModel, path: &Path) -> LoadedModel {
    if !history::exists(path) {
        return model;
    }
    match history::load(path) {
        Ok(history) => model.with_training_history(history),
        Err(error) => {
            output::eprint_line(&format!("warning: {error:#}"));
            model
        }
    }
}

/// Prints the names of a model, with `remark`.
fn announce(model: &LoadedModel, remark: &str) {
    let alias = model.alias().map(|alias| format!(" (also `{alias}`)"));
    output::eprint_line(&sanitize(&format!(
        "model `{}`{}{remark}",
        model.name(),
        alias.unwrap_or_default()
    )));
    if let Some(warning) = model.warning() {
        output::eprint_line(&format!("warning: {warning}"));
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Parses an origin: scheme and host without a path, lowercased as browsers send it.
fn parse_origin(text: &str) -> Result<String, String> {
    let (scheme, host) = text.split_once("://").unwrap_or_default();
    let is_origin = !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '*', ' ']);
    if is_origin {
        return Ok(text.to_ascii_lowercase());
    }
    Err("must be a scheme and a host, e.g. https://app.example or http://localhost:3000".into())
}

/// Splits `NAME=PATH`, unless the argument is an existing path.
fn split_name(argument: &Path) -> (Option<String>, &Path) {
    let parts = argument.to_str().and_then(|text| text.split_once('='));
    match parts.filter(|(name, _)| !name.is_empty() && !argument.exists()) {
        Some((name, path)) => (Some(name.to_owned()), Path::new(path)),
        None => (None, argument),
    }
}

/// The name of the served folder or, without its ending, file. A model or checkpoint in a run's folder has the name
/// in its card, `card_name`: its own says nothing about the run.
fn default_name(path: &Path, card_name: &str) -> String {
    let found = path.canonicalize().ok();
    let found = found.as_deref().unwrap_or(path);
    let is_in_run = found.ancestors().skip(1).take(2).any(models::is_run);
    if is_in_run && !card_name.is_empty() {
        return card_name.to_owned();
    }
    let name = if found.is_file() {
        found.file_stem()
    } else {
        found.file_name()
    };
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_model_is_named_after_what_is_served() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "models/llama",
            "runs/mine/best",
            "runs/mine/checkpoints/step-2",
        ] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        fs::write(folder.path().join("runs/mine/run.toml"), "").unwrap();
        fs::write(folder.path().join("models/small-q8_0.gguf"), "GGUF").unwrap();
        for (path, expected) in [
            ("models/llama", "llama"),
            ("models/llama/", "llama"),
            ("models/../models/llama", "llama"),
            ("models/small-q8_0.gguf", "small-q8_0"),
            ("runs/mine", "mine"),
            ("runs/mine/best", "card"),
            ("runs/mine/checkpoints/step-2", "card"),
        ] {
            assert_eq!(
                default_name(&folder.path().join(path), "card"),
                expected,
                "{path}"
            );
        }
        assert_eq!(
            default_name(&folder.path().join("runs/mine/best"), ""),
            "best"
        );
    }
}
