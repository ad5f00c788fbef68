//! `nextword watch RUNS...`, and the page of `train --watch`.

mod runs;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueHint};
use nextword_server::{Config, Server, ServerError};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::commands::serve::listen_error;
use crate::signals::StopSignals;
use crate::{models, output};
use runs::RunFolders;

/// The page is for this machine; others reach it by port forwarding.
const HOST: &str = "127.0.0.1";

/// Port without `--port`.
const DEFAULT_PORT: u16 = 8090;

/// `watch RUNS...`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Run folders, or folders that contain runs
    #[arg(default_value = "runs", value_hint = ValueHint::DirPath)]
    runs: Vec<PathBuf>,
    /// Port to listen on, on this machine only; 0 takes a free one
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
}

/// Serves the page until the process receives a stop signal.
pub(crate) fn run(args: &WatchArgs) -> anyhow::Result<()> {
    if let Some(missing) = args.runs.iter().find(|path| !path.exists()) {
        return Err(models::missing(missing, "a folder with runs, e.g. runs"));
    }
    let (runtime, listener) = listen(args.port)?;
    let server = server(args.runs.clone());
    let result = runtime.block_on(async {
        let mut signals = StopSignals::new().map_err(ServerError::from)?;
        server
            .serve(listener, async move { signals.recv().await })
            .await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result?)
}

/// Serves the page of one run from a thread of its own, for as long as the process runs. A port that is in use is replaced
/// by a free one.
pub(crate) fn spawn(run: PathBuf) -> anyhow::Result<()> {
    let (runtime, listener) = listen(DEFAULT_PORT).or_else(|_| listen(0))?;
    let server = server(vec![run]);
    thread::spawn(move || runtime.block_on(server.serve(listener, std::future::pending())));
    Ok(())
}

fn server(runs: Vec<PathBuf>) -> Server {
    Server::for_runs(Arc::new(RunFolders::new(runs)), Config::default())
}

fn listen(port: u16) -> anyhow::Result<(Runtime, TcpListener)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(ServerError::from)?;
    let listener = runtime.block_on(TcpListener::bind((HOST, port)));
    let listener = listener.map_err(|error| listen_error(HOST, port, &error))?;
    let address = listener.local_addr().map_err(ServerError::from)?;
    output::eprint_line(&format!("watch the curves at http://{address}"));
    Ok((runtime, listener))
}
