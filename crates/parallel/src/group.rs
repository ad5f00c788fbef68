//! A group of ranks, as one of them sees it.

mod starting;
mod waiting;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::exchange::{Request, Response};
use crate::peers::Peer;
use crate::{Control, ParallelError, Transport, threads};
use starting::Starting;

/// The longest time that a rank waits for another by default: one that saves a large model.
const TIMEOUT: Duration = Duration::from_mins(30);

/// How long a process waits to be ended by an abort.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of all ranks together that are sent at once. MPI counts with 32 bits.
const PACKET: usize = 64 << 20;

/// This rank's handle of a group of ranks. Clones belong to the same rank.
///
/// All ranks make the same calls in the same order. Sums are computed in the background, in the order in which they
/// were [started](Self::start_sum).
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    rank: usize,
    peers: Vec<Peer>,
    /// `None` for a rank that is alone.
    link: Option<Link>,
}

/// The connection to the thread that communicates.
struct Link {
    requests: Sender<Request>,
    responses: Mutex<Receiver<Result<Response, ParallelError>>>,
    control: Control,
    thread: Mutex<Option<JoinHandle<()>>>,
    settings: Mutex<Settings>,
    waited: AtomicU64,
}

struct Settings {
    timeout: Duration,
    is_stopping: Box<dyn Fn() -> bool + Send>,
    /// Whether the next answer may take as long as a save.
    expects_save: bool,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("rank", &self.rank())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::alone()
    }
}

/// Locks data that no panic can leave inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// A group of one rank, which communicates with nobody.
    pub fn alone() -> Self {
        let own = Peer {
            host: "this machine".to_string(),
            space: String::new(),
            process: 0,
        };
        Self(Arc::new(Inner {
            rank: 0,
            peers: vec![own],
            link: None,
        }))
    }

    /// A group whose ranks are `size` threads of this process: the handle of each, for a thread of its own.
    ///
    /// # Errors
    /// [`ParallelError::Start`] if a thread cannot be started.
    pub fn threads(size: usize) -> Result<Vec<Self>, ParallelError> {
        if size <= 1 {
            return Ok(vec![Self::alone()]);
        }
        let ends = threads::ends(size).into_iter();
        let started: Vec<Starting> = ends
            .map(|end| Starting::new(|control| Ok(end(control))))
            .collect::<Result<_, _>>()?;
        started.into_iter().map(Starting::join_group).collect()
    }

    /// Joins the group of processes that `mpirun` or `srun` started.
    ///
    /// # Errors
    /// [`ParallelError::Start`] if MPI cannot be initialized or counts other ranks than `launched`.
    #[cfg(feature = "mpi")]
    pub fn mpi(launched: crate::Launched) -> Result<Self, ParallelError> {
        Self::start(move |control| crate::mpi_transport::MpiTransport::new(control, launched))
    }

    /// Joins a group through the transport that `open` creates, in the thread that will own it. It returns when all
    /// ranks have joined.
    ///
    /// # Errors
    /// Those of `open` and of the transport.
    pub fn start<T: Transport>(
        open: impl FnOnce(Control) -> Result<T, ParallelError> + Send + 'static,
    ) -> Result<Self, ParallelError> {
        Starting::new(open)?.join_group()
    }

    /// The number of this rank, from 0. Rank 0 writes files and reports.
    pub fn rank(&self) -> usize {
        self.0.rank
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.0.peers.len()
    }

    /// Whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The host of each rank.
    pub fn hosts(&self) -> Vec<&str> {
        self.0.peers.iter().map(|peer| peer.host.as_str()).collect()
    }

    /// Describes rank `rank`, such as `rank 2 on node1`.
    pub fn name(&self, rank: usize) -> String {
        match self.0.peers.get(rank) {
            Some(peer) => format!("rank {rank} on {}", peer.host),
            None => format!("rank {rank}"),
        }
    }

    /// A rank whose process on this machine has ended. Those on other machines and in other containers are not known.
    pub fn lost_rank(&self) -> Option<usize> {
        let own = &self.0.peers[self.rank()];
        self.0.peers.iter().position(|peer| peer.has_ended(own))
    }

    /// Whether all lower ranks on this machine have ended, so that this one speaks for them.
    pub fn is_first_alive(&self) -> bool {
        let peers = &self.0.peers;
        let own = &peers[self.rank()];
        peers[..self.rank()].iter().all(|peer| peer.has_ended(own))
    }

    /// Sets the longest time that this rank waits for others.
    pub fn set_timeout(&self, timeout: Duration) {
        if let Some(link) = &self.0.link {
            lock(&link.settings).timeout = timeout;
        }
    }

    /// Sets the function that says whether this rank was asked to stop. If it was, the others may be gone: it does not
    /// wait for those on other machines for long, except after [`expect_save`](Self::expect_save).
    pub fn watch(&self, is_stopping: impl Fn() -> bool + Send + 'static) {
        if let Some(link) = &self.0.link {
            lock(&link.settings).is_stopping = Box::new(is_stopping);
        }
    }

    /// Waits for the next answer of the others up to the timeout, even if this rank was asked to stop: to be called when
    /// rank 0 saves or samples before it answers, or when ranks evaluate.
    pub fn expect_save(&self) {
        if let Some(link) = &self.0.link {
            lock(&link.settings).expects_save = true;
        }
    }

    /// The time that this rank has waited for others so far.
    pub fn waited(&self) -> Duration {
        let link = self.0.link.as_ref();
        Duration::from_nanos(link.map_or(0, |link| link.waited.load(Ordering::Relaxed)))
    }

    /// Sums `values`, as many on each rank, over all ranks, in the order of [`TreeSum`](crate::TreeSum).
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn sum(&self, values: Vec<f32>) -> Result<Vec<f32>, ParallelError> {
        if self.0.link.is_none() {
            return Ok(values);
        }
        self.start_sum(values)?;
        self.finish_numbers()
    }

    /// Starts a [`sum`](Self::sum) in the background. A rank that is alone has none to start.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if the group has ended.
    pub fn start_sum(&self, values: Vec<f32>) -> Result<(), ParallelError> {
        self.request(Request::Sum(values))
    }

    /// Starts a sum of which each rank gets its part: rank `r` the sums of `values[parts[r]]`. All ranks have the same
    /// `parts`, one for each rank.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if the group has ended.
    pub fn start_reduce(
        &self,
        values: Vec<f32>,
        parts: Vec<Range<usize>>,
    ) -> Result<(), ParallelError> {
        self.request(Request::Reduce { values, parts })
    }

    /// Starts sending this rank's `part` to all, which then have the numbers of all ranks: those of rank `r` in `parts[r]`.
    /// All ranks have the same `parts`, consecutive ranges.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if the group has ended.
    pub fn start_collect(
        &self,
        part: Vec<f32>,
        parts: Vec<Range<usize>>,
    ) -> Result<(), ParallelError> {
        self.request(Request::Collect { part, parts })
    }

    /// The result of what was [started](Self::start_sum) first and is not finished.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn finish_numbers(&self) -> Result<Vec<f32>, ParallelError> {
        match self.response()? {
            Response::Numbers(values) => Ok(values),
            Response::Gathered(_) => Err(self.ended()),
        }
    }

    /// The bytes of all ranks, in their order.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ParallelError> {
        self.gather_packets(bytes, true)
    }

    /// The bytes of all ranks, for rank 0. The others get empty ones, and never have all in memory.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn gather_on_first(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ParallelError> {
        self.gather_packets(bytes, self.is_first())
    }

    /// Gathers the bytes of all ranks in packets, and keeps them if `are_kept`.
    fn gather_packets(
        &self,
        bytes: Vec<u8>,
        are_kept: bool,
    ) -> Result<Vec<Vec<u8>>, ParallelError> {
        if self.0.link.is_none() {
            return Ok(vec![bytes]);
        }
        let packet = (PACKET / self.size()).max(1);
        let mut all = vec![Vec::new(); self.size()];
        for start in (0..).step_by(packet) {
            let end = bytes.len().min(start + packet);
            let next = bytes.get(start..end).unwrap_or_default();
            let received = self.gather_packet(next.to_vec())?;
            let is_last = received.iter().all(|bytes| bytes.len() < packet);
            if are_kept {
                let received = received.iter();
                all.iter_mut()
                    .zip(received)
                    .for_each(|(all, bytes)| all.extend(bytes));
            }
            if is_last {
                break;
            }
        }
        Ok(all)
    }

    fn gather_packet(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ParallelError> {
        self.request(Request::Gather(bytes))?;
        match self.response()? {
            Response::Gathered(all) => Ok(all),
            Response::Numbers(_) => Err(self.ended()),
        }
    }

    /// The bytes of rank 0. Those of other ranks are not used.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ParallelError> {
        if self.0.link.is_none() {
            return Ok(bytes);
        }
        let own = if self.is_first() { bytes } else { Vec::new() };
        Ok(self.gather(own)?.swap_remove(0))
    }

    /// Checks that `value`, a description of `subject`, is the same on all ranks. All ranks get the same result.
    ///
    /// # Errors
    /// [`ParallelError::Differs`] with the first rank that differs from rank 0.
    pub fn check_equal(&self, subject: &str, value: &str, hint: &str) -> Result<(), ParallelError> {
        let all = self.gather(value.as_bytes().to_vec())?;
        let Some(rank) = all.iter().position(|other| *other != all[0]) else {
            return Ok(());
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Err(ParallelError::Differs {
            rank: self.name(rank),
            subject: subject.to_string(),
            problem: format!(
                "{} instead of {}; hint: {hint}",
                text(&all[rank]),
                text(&all[0])
            ),
        })
    }

    /// Waits until all ranks have called this, and leaves the group. Rank 0 may still save.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn finish(&self) -> Result<(), ParallelError> {
        let Some(link) = &self.0.link else {
            return Ok(());
        };
        self.expect_save();
        self.gather(Vec::new())?;
        self.request(Request::Close)?;
        if let Some(thread) = lock(&link.thread).take() {
            // A panic there has closed the channel of responses.
            let _ = thread.join();
        }
        Ok(())
    }

    /// Ends all ranks at once, with exit code `code`: after an error, so that no rank waits for this one. Returns if
    /// the ranks are threads, or if MPI does not end this process.
    pub fn abort(&self, code: u8) {
        let Some(link) = &self.0.link else {
            return;
        };
        link.control.abort(code);
        let start = Instant::now();
        let is_running = || {
            lock(&link.thread)
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        };
        while is_running() && start.elapsed() < ABORT_TIMEOUT {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn request(&self, request: Request) -> Result<(), ParallelError> {
        match &self.0.link {
            Some(link) => link.requests.send(request).map_err(|_| self.ended()),
            None => Ok(()),
        }
    }

    /// The error of a group whose thread has ended.
    fn ended(&self) -> ParallelError {
        ParallelError::Lost {
            rank: format!("the group of {}", self.name(self.rank())),
        }
    }
}

#[cfg(test)]
mod tests;
