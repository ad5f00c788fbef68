//! The thread that communicates: it owns the transport and serves requests in order.

use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::tree::add_parts;
use crate::{Control, Gather, ParallelError, Scatter, Transport};

/// How often an idle thread looks for an abort.
const IDLE: Duration = Duration::from_millis(20);

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Request {
    /// Sums of equally long slices over all ranks.
    Sum(Vec<f32>),
    /// The same, of which this rank gets its part only.
    Reduce {
        values: Vec<f32>,
        parts: Vec<Range<usize>>,
    },
    /// The parts of all ranks.
    Collect {
        part: Vec<f32>,
        parts: Vec<Range<usize>>,
    },
    /// The bytes of all ranks.
    Gather(Vec<u8>),
    /// The end: all ranks leave.
    Close,
}

/// The answers, in the order of the requests.
#[derive(Debug)]
pub(crate) enum Response {
    Numbers(Vec<f32>),
    Gathered(Vec<Vec<u8>>),
}

/// Serves requests until the end, an error, an abort, or until the group is dropped.
pub(crate) fn serve(
    mut transport: impl Transport,
    control: &Control,
    requests: &Receiver<Request>,
    responses: &Sender<Result<Response, ParallelError>>,
) {
    let mut sums = Sums::default();
    loop {
        if let Some(code) = control.abort_code() {
            transport.abort(code);
            return;
        }
        // What is left of a sum is sent at once if there is nothing to send with it.
        let wait = if sums.pending.is_some() {
            Duration::ZERO
        } else {
            IDLE
        };
        let request = match requests.recv_timeout(wait) {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let respond = |response| responses.send(Ok(response)).is_ok();
        let served = match request {
            Some(Request::Close) => return,
            request => sums.serve(&mut transport, request, respond),
        };
        match served {
            Ok(true) => {}
            // Nobody waits for responses any more.
            Ok(false) => return,
            Err(error) => return drop(responses.send(Err(error))),
        }
    }
}

/// Sums over all ranks: each adds its part of the numbers, in the order of the tree, and sends the sums to all. What one
/// sum sends at last and the next one at first are sent together, if the next one was requested by then. All ranks send
/// in the same order in either case.
#[derive(Default)]
struct Sums {
    received: Vec<f32>,
    pending: Option<Pending>,
}

/// A sum of which each rank has its part.
struct Pending {
    values: Vec<f32>,
    parts: Vec<Range<usize>>,
    /// The sums of this rank's part.
    own: Vec<f32>,
}

impl Pending {
    fn gather(&mut self) -> Gather<'_> {
        Gather {
            part: &self.own,
            parts: &self.parts,
            values: &mut self.values,
        }
    }
}

impl Sums {
    /// Serves a request; without one, finishes the pending sum. Returns false if nobody waits for the response.
    fn serve(
        &mut self,
        transport: &mut impl Transport,
        request: Option<Request>,
        respond: impl Fn(Response) -> bool,
    ) -> Result<bool, ParallelError> {
        if let Some(Request::Sum(values)) = request {
            let parts = parts(values.len(), transport.size());
            let pending = self.pending.take();
            let (own, pending) = self.add(transport, &values, &parts, pending)?;
            self.pending = Some(Pending { values, parts, own });
            return Ok(pending.is_none_or(|done| respond(Response::Numbers(done))));
        }
        if let Some(mut pending) = self.pending.take() {
            transport.gather(pending.gather())?;
            if !respond(Response::Numbers(pending.values)) {
                return Ok(false);
            }
        }
        let response = match request {
            Some(Request::Reduce { values, parts }) => {
                Response::Numbers(self.add(transport, &values, &parts, None)?.0)
            }
            Some(Request::Collect { part, parts }) => {
                let mut values = vec![0.0; parts.last().map_or(0, |last| last.end)];
                transport.gather(Gather {
                    part: &part,
                    parts: &parts,
                    values: &mut values,
                })?;
                Response::Numbers(values)
            }
            Some(Request::Gather(bytes)) => Response::Gathered(transport.gather_bytes(&bytes)?),
            Some(Request::Sum(_) | Request::Close) | None => return Ok(true),
        };
        Ok(respond(response))
    }

    /// The sums of this rank's part of `values`. Sends what is left of `pending` at the same time, and returns its sums.
    fn add(
        &mut self,
        transport: &mut impl Transport,
        values: &[f32],
        parts: &[Range<usize>],
        pending: Option<Pending>,
    ) -> Result<(Vec<f32>, Option<Vec<f32>>), ParallelError> {
        let (rank, size) = (transport.rank(), transport.size());
        let len = parts[rank].len();
        self.received.resize(size * len, 0.0);
        let scatter = Scatter {
            values,
            parts,
            received: &mut self.received,
        };
        let done = if let Some(mut pending) = pending {
            transport.gather_and_scatter(pending.gather(), scatter)?;
            Some(pending.values)
        } else {
            transport.scatter(scatter)?;
            None
        };
        add_parts(&mut self.received, size);
        Ok((self.received[..len].to_vec(), done))
    }
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
