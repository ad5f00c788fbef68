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
    Sum {
        values: Vec<f32>,
        /// Whether no other sum follows at once.
        is_last: bool,
    },
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
    let mut sums = Sums::default();
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
        let respond = |response| responses.send(Ok(response)).is_ok();
        let served = match request {
            Request::Sum { values, is_last } => {
                let respond = |sum| respond(Response::Sum(sum));
                sums.add(&mut transport, values, is_last, respond)
            }
            Request::Gather(bytes) => transport
                .gather_bytes(&bytes)
                .map(|all| respond(Response::Gathered(all))),
            Request::Close => return,
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
/// sum sends at last and the next one at first are sent together.
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
    /// Replaces `values` by their sums. Calls `respond` with the previous ones, if they are pending, and with these if
    /// they are the last. Returns false if nobody waits for them.
    fn add(
        &mut self,
        transport: &mut impl Transport,
        values: Vec<f32>,
        is_last: bool,
        mut respond: impl FnMut(Vec<f32>) -> bool,
    ) -> Result<bool, ParallelError> {
        let (rank, size) = (transport.rank(), transport.size());
        let parts = parts(values.len(), size);
        let len = parts[rank].len();
        self.received.resize(size * len, 0.0);
        let scatter = Scatter {
            values: &values,
            parts: &parts,
            received: &mut self.received,
        };
        if let Some(mut pending) = self.pending.take() {
            transport.scatter_and_gather(scatter, pending.gather())?;
            if !respond(pending.values) {
                return Ok(false);
            }
        } else {
            transport.scatter(scatter)?;
        }
        add_parts(&mut self.received, size);
        let own = self.received[..len].to_vec();
        let mut pending = Pending { values, parts, own };
        if !is_last {
            self.pending = Some(pending);
            return Ok(true);
        }
        transport.gather(pending.gather())?;
        Ok(respond(pending.values))
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
