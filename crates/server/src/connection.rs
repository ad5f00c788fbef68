//! One connection, with a time for each part of it.

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

/// Headers of a request, and bytes of its head.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 1 << 16;

/// Serves `router` on `stream` within the times of `config`.
pub(crate) fn connection(
    config: &Config,
    stream: TcpStream,
    router: Router,
) -> impl GracefulConnection<Error = hyper::Error> + Send + 'static + use<> {
    let _ = stream.set_nodelay(true); // Tokens are small and should go at once; without, they are late.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.write_time));
    let part = Arc::new(Part(AtomicU8::new(HEAD)));
    let patient = Patient {
        stream: Box::pin(stream),
        part: part.clone(),
        head: Box::pin(sleep(config.head_time)),
        head_time: config.head_time,
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        part.set(ANSWER);
        let part = part.clone();
        let answer = router.call(request);
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answer { body, part }))
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        // Runs while nothing comes too, so a head's own time is kept here.
        .header_read_timeout(config.idle_time + config.head_time)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(patient), service)
}

/// What a connection is at: a request's head, its answer, or nothing.
struct Part(AtomicU8);

const HEAD: u8 = 0;
const ANSWER: u8 = 1;
const IDLE: u8 = 2;

impl Part {
    fn set(&self, part: u8) {
        self.0.store(part, Ordering::Release);
    }

    fn is(&self, part: u8) -> bool {
        self.0.load(Ordering::Acquire) == part
    }
}

/// A stream that waits for the rest of a head only so long. The first head's time begins with the
/// connection, that of others with their first byte.
struct Patient {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    part: Arc<Part>,
    head: Pin<Box<Sleep>>,
    head_time: Duration,
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.stream.as_mut().poll_read(cx, buf);
        if read.is_ready() && self.part.is(IDLE) {
            let until = Instant::now() + self.head_time;
            self.head.as_mut().reset(until);
            self.part.set(HEAD);
        }
        if read.is_pending() && self.part.is(HEAD) && self.head.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Patient {
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
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A response's body. With its end the connection is free for the next request.
struct Answer {
    body: Body,
    part: Arc<Part>,
}

impl HttpBody for Answer {
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

impl Drop for Answer {
    fn drop(&mut self) {
        self.part.set(IDLE);
    }
}
