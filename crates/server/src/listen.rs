//! Connections: taken in up to a limit, and let go in peace.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::connection::connection;
use crate::routes::{App, BLOCKING, router};
use crate::served::{Model, Served};
use crate::{Config, ServerError};

/// What a server tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It takes requests at this address.
    Listening(SocketAddr),
    /// It was asked to stop, and finishes the answers under way.
    Stopping,
}

/// Serves `models` until the process is asked to stop (SIGINT or SIGTERM), then lets answers under
/// way finish for [`Config::drain_time`], or until it is asked once more.
///
/// # Errors
/// [`ServerError`] if the settings are refused, or the address cannot be used.
pub fn serve(
    models: Vec<Served>,
    config: Config,
    tell: impl FnMut(Stage),
) -> Result<(), ServerError> {
    let only_loopback = is_loopback(&config.host);
    if !only_loopback && config.api_key.is_none() {
        return Err(ServerError::KeyNeeded { host: config.host });
    }
    let mut started: Vec<Arc<Model>> = Vec::new();
    for served in models {
        let model = Model::start(served, &config)?;
        if started.iter().any(|other| other.name == model.name) {
            return Err(ServerError::SameName { name: model.name });
        }
        started.push(Arc::new(model));
    }
    let app = Arc::new(App::new(started, config, only_loopback));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()?;
    let done = runtime.block_on(listen(app, tell));
    // Connections that do not end by themselves are cut.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn listen(app: Arc<App>, mut tell: impl FnMut(Stage)) -> Result<(), ServerError> {
    let (host, port) = (app.config.host.clone(), app.config.port);
    let fail = |source| ServerError::Listen {
        address: format!("{host}:{port}"),
        source,
    };
    let listener = TcpListener::bind((host.as_str(), port))
        .await
        .map_err(fail)?;
    let mut stop = Stop::new()?;
    tell(Stage::Listening(listener.local_addr()?));

    let router = router(app.clone());
    let connections = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(app.config.connections));
    loop {
        let next = async {
            // The permit comes first: the system's own queue keeps those for whom there is none.
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = stop.asked() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: some will be given back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let connection = connections.watch(connection(&app.config, stream, router.clone()));
        tokio::spawn(async move {
            let _ = connection.await; // A client's broken connection is the client's business.
            drop(permit);
        });
    }
    drop(listener);
    app.stopping.store(true, Ordering::Release);
    tell(Stage::Stopping);
    let drained = tokio::time::timeout(app.config.drain_time, connections.shutdown());
    let all_ended = tokio::select! {
        drained = drained => drained.is_ok(),
        () = stop.asked() => false,
    };
    if !all_ended {
        app.models.iter().for_each(|model| model.engine.abort());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Signals that ask the process to stop.
#[cfg(unix)]
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Stop {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Ends when the process is asked to stop, once more each time.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
struct Stop;

#[cfg(not(unix))]
impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn asked(&mut self) {
        // Without a handler there is no way to be asked.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
