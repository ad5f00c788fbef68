//! A server: its models, its router and its life from the first connection to shutdown.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::engine::EngineThread;
use crate::listen::Acceptor;
use crate::loaded_model::{LoadedModel, Model};
use crate::middleware::HostCheck;
use crate::routes::{AppState, router};
use crate::{Adapters, Config, RunSource, ServerError, panics};

/// How long connections may take to send the error of an aborted request.
const ABORT_GRACE: Duration = Duration::from_millis(300);

/// Models behind HTTP, each with an engine thread. Dropping the server fails all completions and waits for
/// the threads to end, which takes at most one step of a model.
///
/// [`serve`](Self::serve) runs on a listener of yours, with limits on connections. To add the routes to
/// another axum application, use [`router`](Self::router).
pub struct Server {
    app: Arc<AppState>,
    engines: Vec<EngineThread>,
    abort: Arc<Notify>,
}

/// Ends [`Server::serve`] without waiting for the requests in flight.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_model::ModelDir;
/// use nextword_server::{Config, LoadedModel, Server};
/// use tokio::net::TcpListener;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = ModelDir::open("../../docs/models/statquest".as_ref())?;
/// let model = LoadedModel::open("statquest".to_string(), &folder, &Device::flex())?;
/// let server = Server::new(vec![model], Config::default())?;
/// let handle = server.abort_handle();
///
/// let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
/// let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?; // Any free port.
/// let serving = runtime.spawn(server.serve(listener, std::future::pending()));
/// assert!(!serving.is_finished());
/// handle.abort(); // From any thread.
/// runtime.block_on(serving)??;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AbortHandle(Arc<Notify>);

impl AbortHandle {
    /// Fails the requests in flight with status 503 and makes [`Server::serve`] return.
    pub fn abort(&self) {
        self.0.notify_one();
    }
}

impl Server {
    /// Starts an engine for each of `models`. Requests that name no model use the first one,
    /// unless [`Config::default_model`] says otherwise.
    ///
    /// Panics of requests and engines are caught and logged. For their location, the first call installs a
    /// panic hook, which calls the previous hook.
    ///
    /// # Errors
    /// [`ServerError::DuplicateName`]; [`ServerError::Budget`] if the KV cache of one sequence is larger than
    /// [`Config::cache_bytes`]; [`ServerError::Io`] if a thread cannot be started.
    pub fn new(models: Vec<LoadedModel>, config: Config) -> Result<Self, ServerError> {
        panics::install_hook();
        let mut started: Vec<Arc<Model>> = Vec::new();
        let mut engines = Vec::new();
        for loaded in models {
            let (model, engine) = Model::start(loaded, &config)?;
            engines.push(engine);
            if started.iter().any(|other| other.name == model.name) {
                return Err(ServerError::DuplicateName { name: model.name });
            }
            started.push(Arc::new(model));
        }
        Ok(Self {
            app: Arc::new(AppState::new(started, config)),
            engines,
            abort: Arc::default(),
        })
    }

    /// A server that shows runs while they train, and no models: a page with the same access control.
    pub fn for_runs(runs: Arc<dyn RunSource>, config: Config) -> Self {
        panics::install_hook();
        Self {
            app: Arc::new(AppState::for_runs(runs, config)),
            engines: Vec::new(),
            abort: Arc::default(),
        }
    }

    /// The routes, with access control and all limits on requests: size, time to read a body, concurrency,
    /// queues. Limits on connections are the caller's.
    ///
    /// The `Host` header must name a loopback address or one of [`Config::allow_hosts`]. Keep the server as
    /// long as the router: without it, completions answer 503.
    ///
    /// ```
    /// use axum::Router;
    /// use axum::body::Body;
    /// use axum::http::{Request, StatusCode};
    /// use axum::routing::get;
    /// use burn::tensor::Device;
    /// use hyper::service::Service;
    /// use hyper_util::service::TowerToHyperService;
    /// use nextword_model::ModelDir;
    /// use nextword_server::{Config, LoadedModel, Server};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let folder = ModelDir::open("../../docs/models/statquest".as_ref())?;
    /// let model = LoadedModel::open("statquest".to_string(), &folder, &Device::flex())?;
    /// let server = Server::new(vec![model], Config::default())?;
    /// let app = Router::new().route("/version", get(|| async { "1.0" })).merge(server.router());
    ///
    /// let app = TowerToHyperService::new(app); // Calls the routes without a listener.
    /// let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    /// for path in ["/version", "/v1/models/statquest"] {
    ///     let request = Request::get(path).header("host", "localhost").body(Body::empty())?;
    ///     assert_eq!(runtime.block_on(app.call(request))?.status(), StatusCode::OK);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn router(&self) -> Router {
        router(self.app.clone(), HostCheck::Loopback)
    }

    /// The adapters of the models: none at first. The handle remains valid while the server runs.
    pub fn adapters(&self) -> Adapters {
        Adapters(self.app.models.clone())
    }

    /// A handle that ends [`serve`](Self::serve) at once.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(self.abort.clone())
    }

    /// Serves HTTP on `listener` until `shutdown` completes. Requests in flight may then finish within
    /// [`Config::shutdown_grace`]. Dropping the future closes all connections.
    ///
    /// On a loopback address, the `Host` header must name such an address or one of [`Config::allow_hosts`].
    ///
    /// # Errors
    /// [`ServerError::ApiKeyRequired`] if other machines can reach `listener` and there is no API key.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServerError> {
        let Self {
            app,
            engines,
            abort,
        } = self;
        let address = listener.local_addr()?;
        let host_check = if address.ip().is_loopback() {
            HostCheck::Loopback
        } else if app.key.is_some() {
            HostCheck::Off
        } else {
            let host = address.ip().to_string();
            return Err(ServerError::ApiKeyRequired { host });
        };
        tracing::info!(%address, "listening");
        let router = router(app.clone(), host_check);
        let mut acceptor = Acceptor::new(listener, router, &app.config);
        let aborted = tokio::select! {
            never = acceptor.run() => match never {},
            () = shutdown => false,
            () = abort.notified() => true,
        };
        tracing::info!("shutting down");
        app.stop_accepting();
        let mut connections = acceptor.close();
        let finished = !aborted
            && tokio::select! {
                finished = connections.wait(app.config.shutdown_grace) => finished,
                () = abort.notified() => false,
            };
        if !finished {
            tracing::info!("aborting the requests in flight");
            engines.iter().for_each(EngineThread::abort);
            connections.wait(ABORT_GRACE).await;
        }
        // Waits for the threads, away from those of the runtime: a step in progress may take seconds.
        let ended = tokio::task::spawn_blocking(move || drop(engines));
        if finished {
            let _ = ended.await; // Fails only if the runtime shuts down.
        }
        tracing::info!("stopped");
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models = self.app.models.all();
        let models: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
        f.debug_struct("Server")
            .field("models", &models)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod adapter_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod architecture_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
