//! A group of ranks, as one of them sees it.

mod starting;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::exchange::{Request, Response};
use crate::peers::Peer;
use crate::{Control, ParallelError, Transport, threads};
use starting::Starting;

/// How often a waiting rank checks whether the others still run.
const CHECK: Duration = Duration::from_millis(250);

/// How long a rank waits for others on other machines after it was asked to stop: another rank may be gone, but may
/// also be saving.
const GRACE: Duration = Duration::from_secs(20);

/// The longest time that a rank waits for another by default: one that saves a large model.
const TIMEOUT: Duration = Duration::from_mins(30);

/// How long a process waits to be ended by an abort.
const ABORT: Duration = Duration::from_secs(5);

/// Bytes that are sent at once. MPI counts with 32 bits.
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
    /// wait for those on other machines for long, until [`wait_for_save`](Self::wait_for_save).
    pub fn watch(&self, is_stopping: impl Fn() -> bool + Send + 'static) {
        if let Some(link) = &self.0.link {
            lock(&link.settings).is_stopping = Box::new(is_stopping);
        }
    }

    /// Waits for other ranks up to the timeout, even if this one was asked to stop: to be called when all have agreed to
    /// stop, because rank 0 then saves while the others wait.
    pub fn wait_for_save(&self) {
        self.watch(|| false);
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
        self.start_sum(values, true)?;
        self.finish_sum()
    }

    /// Starts a [`sum`](Self::sum) in the background, and says whether it `is_last`: otherwise, another one must be started
    /// next, on all ranks, and the two share the network. A rank that is alone has none to start.
    ///
    /// # Errors
    /// [`ParallelError::Lost`] if the group has ended.
    pub fn start_sum(&self, values: Vec<f32>, is_last: bool) -> Result<(), ParallelError> {
        self.request(Request::Sum { values, is_last })
    }

    /// The result of the first sum that was started and not finished.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn finish_sum(&self) -> Result<Vec<f32>, ParallelError> {
        match self.response()? {
            Response::Sum(values) => Ok(values),
            Response::Gathered(_) => Err(self.ended()),
        }
    }

    /// The bytes of all ranks, in their order.
    ///
    /// # Errors
    /// [`ParallelError`] if a rank is gone or does not answer.
    pub fn gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, ParallelError> {
        if self.0.link.is_none() {
            return Ok(vec![bytes]);
        }
        self.request(Request::Gather(bytes))?;
        match self.response()? {
            Response::Gathered(all) => Ok(all),
            Response::Sum(_) => Err(self.ended()),
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
        let len = self.gather((own.len() as u64).to_le_bytes().to_vec())?;
        let len = len[0]
            .first_chunk()
            .map_or(0, |len| u64::from_le_bytes(*len)) as usize;
        let mut all = Vec::with_capacity(len);
        for start in (0..len).step_by(PACKET) {
            let end = (start + PACKET).min(own.len());
            let packet = own.get(start..end).unwrap_or_default().to_vec();
            all.append(&mut self.gather(packet)?.swap_remove(0));
        }
        Ok(all)
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
        self.wait_for_save();
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
        while is_running() && start.elapsed() < ABORT {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn request(&self, request: Request) -> Result<(), ParallelError> {
        match &self.0.link {
            Some(link) => link.requests.send(request).map_err(|_| self.ended()),
            None => Ok(()),
        }
    }

    /// Waits for the next response.
    fn response(&self) -> Result<Response, ParallelError> {
        let Some(link) = &self.0.link else {
            return Err(self.ended());
        };
        let start = Instant::now();
        let responses = lock(&link.responses);
        let response = loop {
            match responses.recv_timeout(CHECK) {
                Ok(response) => break response,
                Err(RecvTimeoutError::Timeout) => self.check_others(link, start.elapsed())?,
                Err(RecvTimeoutError::Disconnected) => break Err(self.ended()),
            }
        };
        let waited = start.elapsed().as_nanos() as u64;
        link.waited.fetch_add(waited, Ordering::Relaxed);
        response
    }

    /// Whether there is still something to wait for after `waited`.
    fn check_others(&self, link: &Link, waited: Duration) -> Result<(), ParallelError> {
        if let Some(rank) = self.lost_rank() {
            return Err(ParallelError::Lost {
                rank: self.name(rank),
            });
        }
        let settings = lock(&link.settings);
        let peers = &self.0.peers;
        let own = &peers[self.rank()];
        let is_local = peers.iter().all(|peer| peer.is_visible_to(own));
        if !is_local && waited > GRACE && (settings.is_stopping)() {
            return Err(ParallelError::Lost {
                rank: "another rank".to_string(),
            });
        }
        if waited > settings.timeout {
            return Err(ParallelError::Timeout { waited });
        }
        Ok(())
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
