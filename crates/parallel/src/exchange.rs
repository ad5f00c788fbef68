//! The thread that communicates: it owns the transport and serves requests in order.

use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::tree::add_parts;
use crate::{Control, ParallelError, Transport};

/// How often an idle thread looks for an abort.
const IDLE: Duration = Duration::from_millis(20);

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Request {
    /// Sums of equally long slices over all ranks.
    Sum(Vec<f32>),
    /// The bytes of all ranks.
    Gather(Vec<u8>),
    /// The end: all ranks leave.
    Close,
}

/// The answers, in the order of the requests.
#[derive(Debug)]
pub(crate) enum Response {
    Sum(Vec<f32>),
    Gathered(Vec<Vec<u8>>),
}

/// Serves requests until the end, an error, an abort, or until the group is dropped.
pub(crate) fn serve(
    mut transport: impl Transport,
    control: &Control,
    requests: &Receiver<Request>,
    responses: &Sender<Result<Response, ParallelError>>,
) {
    let mut received = Vec::new();
    loop {
        if let Some(code) = control.abort_code() {
            transport.abort(code);
            return;
        }
        let request = match requests.recv_timeout(IDLE) {
            Ok(request) => request,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let response = match request {
            Request::Sum(values) => sum(&mut transport, values, &mut received).map(Response::Sum),
            Request::Gather(bytes) => transport.gather_bytes(&bytes).map(Response::Gathered),
            Request::Close => return,
        };
        let failed = response.is_err();
        if responses.send(response).is_err() || failed {
            return;
        }
    }
}

/// Replaces `values` by their sums over all ranks: each rank adds its part of the numbers, in the order of the tree.
fn sum(
    transport: &mut impl Transport,
    mut values: Vec<f32>,
    received: &mut Vec<f32>,
) -> Result<Vec<f32>, ParallelError> {
    let (rank, size) = (transport.rank(), transport.size());
    let parts = parts(values.len(), size);
    let own = parts[rank].len();
    received.resize(size * own, 0.0);
    transport.exchange_parts(&values, &parts, received)?;
    add_parts(received, size);
    transport.gather_parts(&received[..own], &parts, &mut values)?;
    Ok(values)
}

/// `len` numbers in `size` contiguous parts, whose lengths differ by one at most.
fn parts(len: usize, size: usize) -> Vec<Range<usize>> {
    let start = |rank: usize| rank * (len / size) + rank.min(len % size);
    (0..size).map(|rank| start(rank)..start(rank + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_numbers_once() {
        for len in 0..20 {
            for size in 1..7 {
                let parts = parts(len, size);
                assert!(
                    parts.iter().cloned().flatten().eq(0..len),
                    "{len} in {size}"
                );
            }
        }
    }
}
