//! Waiting for other ranks, as long as there is something to wait for.

use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::{Group, Link, lock};
use crate::ParallelError;
use crate::exchange::Response;

/// How often a waiting rank checks whether the others still run.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a rank waits for others on other machines after it was asked to stop, unless rank 0 may be saving: another
/// rank may be gone.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(20);

impl Group {
    /// Waits for the next response.
    pub(super) fn response(&self) -> Result<Response, ParallelError> {
        let Some(link) = &self.0.link else {
            return Err(self.ended());
        };
        let start = Instant::now();
        let responses = lock(&link.responses);
        let response = loop {
            match responses.recv_timeout(CHECK_INTERVAL) {
                Ok(response) => break response,
                Err(RecvTimeoutError::Timeout) => self.check_others(link, start.elapsed())?,
                Err(RecvTimeoutError::Disconnected) => break Err(self.ended()),
            }
        };
        let waited = start.elapsed().as_nanos() as u64;
        link.waited.fetch_add(waited, Ordering::Relaxed);
        lock(&link.settings).expects_save = false;
        response
    }

    /// Whether there is still something to wait for after `waited`.
    pub(super) fn check_others(&self, link: &Link, waited: Duration) -> Result<(), ParallelError> {
        if let Some(rank) = self.lost_rank() {
            return Err(ParallelError::Lost {
                rank: self.name(rank),
            });
        }
        let settings = lock(&link.settings);
        let peers = &self.0.peers;
        let own = &peers[self.rank()];
        let is_local = peers.iter().all(|peer| peer.is_visible_to(own));
        if !is_local && waited > STOP_TIMEOUT && !settings.expects_save && (settings.is_stopping)()
        {
            return Err(ParallelError::Lost {
                rank: "another rank".to_string(),
            });
        }
        if waited > settings.timeout {
            return Err(ParallelError::Timeout { waited });
        }
        Ok(())
    }
}
