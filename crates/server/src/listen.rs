//! Accepts connections up to a limit, and shuts down gracefully.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::connection::serve_connection;
use crate::loaded_model::{LoadedModel, Model};
use crate::routes::{AppState, MAX_BLOCKING_THREADS, router};
use crate::{Config, ServerError, panics};

/// A change in the state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// It accepts requests at this address.
    Listening(SocketAddr),
    /// It received a shutdown signal and finishes its in-flight requests.
    Stopping,
}

/// Serves `models` until SIGINT or SIGTERM. In-flight requests may then finish within
/// [`Config::shutdown_grace`]; a second signal aborts them.
///
/// Errors inside the server are logged through `tracing`. For the location of panics, the first call
/// installs a panic hook, which calls the previous hook.
///
/// # Errors
/// [`ServerError`] if the configuration is invalid or the address cannot be bound.
pub fn serve(
    models: Vec<LoadedModel>,
    config: Config,
    on_event: impl FnMut(ServerEvent),
) -> Result<(), ServerError> {
    panics::install_hook();
    let loopback_only = is_loopback(&config.host);
    if !loopback_only && config.api_key.is_none() {
        return Err(ServerError::ApiKeyRequired { host: config.host });
    }
    let mut started: Vec<Arc<Model>> = Vec::new();
    for loaded in models {
        let model = Model::start(loaded, &config)?;
        if started.iter().any(|other| other.name == model.name) {
            return Err(ServerError::DuplicateName { name: model.name });
        }
        started.push(Arc::new(model));
    }
    let app = Arc::new(AppState::new(started, config, loopback_only));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build()?;
    let result = runtime.block_on(listen(app, on_event));
    // Drops connections that are still open.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn listen(
    app: Arc<AppState>,
    mut on_event: impl FnMut(ServerEvent),
) -> Result<(), ServerError> {
    let (host, port) = (app.config.host.clone(), app.config.port);
    let listen_error = |source| ServerError::Listen {
        address: format!("{host}:{port}"),
        source,
    };
    let listener = TcpListener::bind((host.as_str(), port))
        .await
        .map_err(listen_error)?;
    let mut signals = StopSignals::new()?;
    on_event(ServerEvent::Listening(listener.local_addr()?));

    let router = router(app.clone());
    let connections = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(app.config.max_connections));
    loop {
        let next = async {
            // Acquires the permit first: until then, connections wait in the system's backlog.
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = signals.recv() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Most likely out of file descriptors: retry when some have been released.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let connection = serve_connection(&app.config, stream, router.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // Errors of a single connection are the client's.
            if let Err(payload) = AssertUnwindSafe(connection).catch_unwind().await {
                panics::log("a connection", &*payload);
            }
            drop(permit);
        });
    }
    drop(listener);
    app.stopping.store(true, Ordering::Release);
    on_event(ServerEvent::Stopping);
    let drain = tokio::time::timeout(app.config.shutdown_grace, connections.shutdown());
    let all_finished = tokio::select! {
        drained = drain => drained.is_ok(),
        () = signals.recv() => false,
    };
    if !all_finished {
        app.models.iter().for_each(|model| model.engine.abort());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Signals that request a shutdown.
#[cfg(unix)]
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next shutdown signal.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ctrl-C requests a shutdown.
#[cfg(not(unix))]
struct StopSignals;

#[cfg(not(unix))]
impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn recv(&mut self) {
        // Without a handler no signal can arrive.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
