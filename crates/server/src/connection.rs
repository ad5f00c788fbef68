//! One HTTP connection, with a timeout for each phase.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_io_timeout::TimeoutStream;

use crate::Config;

/// Maximum number of headers in a request.
const MAX_HEADERS: usize = 64;
/// Maximum size of a request head, in bytes.
const MAX_HEAD_BYTES: usize = 1 << 16;

/// Serves `router` on `stream` with the timeouts of `config`.
pub(crate) fn serve_connection(
    config: &Config,
    stream: TcpStream,
    router: Router,
) -> impl GracefulConnection<Error = hyper::Error> + Send + 'static + use<> {
    let _ = stream.set_nodelay(true); // Nagle's algorithm would delay small token chunks.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.write_timeout));
    let state = Arc::new(ConnState(AtomicU8::new(READING_HEAD)));
    let stream = HeadTimeoutStream {
        stream: Box::pin(stream),
        state: state.clone(),
        head_deadline: Box::pin(sleep(config.header_timeout)),
        header_timeout: config.header_timeout,
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        state.set(RESPONDING);
        let state = state.clone();
        let response = router.call(request);
        async move {
            let response = response.await?;
            Ok::<_, Infallible>(response.map(|body| TrackedBody { body, state }))
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        // Hyper also counts the idle time, so `HeadTimeoutStream` enforces the header timeout itself.
        .header_read_timeout(config.idle_timeout + config.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
}

/// The phase of a connection: reading a request head, responding, or idle.
struct ConnState(AtomicU8);

const READING_HEAD: u8 = 0;
const RESPONDING: u8 = 1;
const IDLE: u8 = 2;

impl ConnState {
    fn set(&self, state: u8) {
        self.0.store(state, Ordering::Release);
    }

    fn is(&self, state: u8) -> bool {
        self.0.load(Ordering::Acquire) == state
    }
}

/// A stream with a timeout for reading request heads. For the first head the timeout starts with the
/// connection, for later ones with their first byte.
struct HeadTimeoutStream {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    state: Arc<ConnState>,
    head_deadline: Pin<Box<Sleep>>,
    header_timeout: Duration,
}

impl AsyncRead for HeadTimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.stream.as_mut().poll_read(cx, buf);
        if read.is_ready() && self.state.is(IDLE) {
            let deadline = Instant::now() + self.header_timeout;
            self.head_deadline.as_mut().reset(deadline);
            self.state.set(READING_HEAD);
        }
        if read.is_pending()
            && self.state.is(READING_HEAD)
            && self.head_deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for HeadTimeoutStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A response body. Dropping it marks the connection as idle, ready for the next request.
struct TrackedBody {
    body: Body,
    state: Arc<ConnState>,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.state.set(IDLE);
    }
}
