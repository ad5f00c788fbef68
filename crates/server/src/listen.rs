//! Accepts connections up to a limit, and closes them gracefully.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::connection::serve_connection;
use crate::{Config, panics};

/// Pause after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Accepts connections and serves each in a task of its own. Dropping it closes all connections.
pub(crate) struct Acceptor<'a> {
    listener: TcpListener,
    router: Router,
    config: &'a Config,
    permits: Arc<Semaphore>,
    graceful: GracefulShutdown,
    tasks: JoinSet<()>,
}

impl<'a> Acceptor<'a> {
    pub(crate) fn new(listener: TcpListener, router: Router, config: &'a Config) -> Self {
        Self {
            listener,
            router,
            config,
            permits: Arc::new(Semaphore::new(config.max_connections)),
            graceful: GracefulShutdown::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Accepts connections until the future is dropped.
    pub(crate) async fn run(&mut self) -> Infallible {
        loop {
            // Acquires the permit first: until then, connections wait in the system's backlog.
            let permit = self.permits.clone().acquire_owned().await;
            let Ok((stream, _)) = self.listener.accept().await else {
                // Most likely out of file descriptors: retry when some have been released.
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            };
            let connection = serve_connection(self.config, stream, self.router.clone());
            let connection = self.graceful.watch(connection);
            self.tasks.spawn(async move {
                // Errors of a single connection are the client's.
                if let Err(payload) = AssertUnwindSafe(connection).catch_unwind().await {
                    panics::log("a connection", &*payload);
                }
                drop(permit);
            });
            while self.tasks.try_join_next().is_some() {} // Frees the tasks that have ended.
        }
    }

    /// Stops accepting. Connections end after their current response.
    pub(crate) fn close(self) -> ClosingConnections {
        ClosingConnections {
            ended: Box::pin(self.graceful.shutdown()),
            _tasks: self.tasks,
        }
    }
}

/// Connections that end after their current response. Dropping them closes them.
pub(crate) struct ClosingConnections {
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    _tasks: JoinSet<()>,
}

impl ClosingConnections {
    /// Waits until all connections have ended. Returns false after `timeout`.
    pub(crate) async fn wait(&mut self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, &mut self.ended).await.is_ok()
    }
}
