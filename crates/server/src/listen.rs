//! Connections: taken in up to a limit, with a time for everything, and let go in peace.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::desk::Desk;
use crate::guard::Key;
use crate::metrics::Responses;
use crate::routes::{App, router};
use crate::served::{Model, Served};
use crate::{Config, ServerError};

/// Headers of a request, and bytes of its head.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 1 << 16;

/// Serves `models` until the process is asked to stop (SIGINT or SIGTERM), then lets answers under
/// way finish for [`Config::drain_time`]. `ready` is told the address.
///
/// # Errors
/// [`ServerError`] if the settings are refused, or the address cannot be used.
pub fn serve(
    models: Vec<Served>,
    config: Config,
    ready: impl FnOnce(SocketAddr),
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
    let app = Arc::new(App {
        models: started,
        key: config.api_key.as_deref().map(Key::new),
        only_loopback,
        stopping: AtomicBool::new(false),
        responses: Responses::default(),
        desk: Desk::default(),
        config,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    let done = runtime.block_on(listen(app, ready));
    // Connections that do not end by themselves are cut.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn listen(app: Arc<App>, ready: impl FnOnce(SocketAddr)) -> Result<(), ServerError> {
    let (host, port) = (app.config.host.clone(), app.config.port);
    let fail = |source| ServerError::Listen {
        address: format!("{host}:{port}"),
        source,
    };
    let listener = TcpListener::bind((host.as_str(), port))
        .await
        .map_err(fail)?;
    let mut stop = std::pin::pin!(stop_signal()?);
    ready(listener.local_addr()?);

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
            () = &mut stop => break,
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
    let drained = connections.shutdown();
    if tokio::time::timeout(app.config.drain_time, drained)
        .await
        .is_err()
    {
        app.models.iter().for_each(|model| model.engine.abort());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

type Io = TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>;

fn connection(
    config: &Config,
    stream: TcpStream,
    router: Router,
) -> http1::Connection<Io, TowerToHyperService<Router>> {
    let _ = stream.set_nodelay(true); // Tokens are small and should go at once; without, they are late.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.write_time));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.head_time)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(router),
        )
}

/// Ends when the process is asked to stop.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    {
        Ok(async {
            // Without a handler there is no way to be asked.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
