//! Errors of ranks that train together.

use std::time::Duration;

/// An error of a group of ranks. After any but [`Division`](Self::Division), the group cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParallelError {
    /// The ranks cannot share the micro-batches of a step equally and with the same order of additions.
    #[error("{ranks} ranks cannot share {lanes} lanes (train.lanes); hint: {hint}")]
    Division {
        /// Number of ranks.
        ranks: usize,
        /// Number of lanes.
        lanes: usize,
        /// Numbers that work.
        hint: String,
    },
    /// MPI could not be started.
    #[error("MPI did not start: {0}")]
    Start(String),
    /// A rank that others wait for has ended.
    #[error(
        "{rank} has ended; hint: it was killed, or its message is above; the last checkpoint is kept, continue with `nextword resume`"
    )]
    Lost {
        /// The rank and its host, or "another rank".
        rank: String,
    },
    /// A rank did not answer for too long.
    #[error(
        "no answer from all ranks for {} s; hint: a rank may be stopped or its network down; if a rank is only \
         slow, continue the last checkpoint with `nextword resume RUN --set parallel.timeout=SECONDS`", .waited.as_secs()
    )]
    Timeout {
        /// The time that this rank has waited.
        waited: Duration,
    },
    /// A message is longer than MPI can count.
    #[error("a message of {len} numbers is too long for MPI; hint: please report this")]
    TooLong {
        /// Numbers up to its end.
        len: usize,
    },
    /// The ranks do not agree on something that must be the same everywhere.
    #[error("{rank} differs from rank 0 in {subject}: {problem}")]
    Differs {
        /// The rank and its host.
        rank: String,
        /// What differs.
        subject: String,
        /// The value of that rank and that of rank 0, and how to fix it.
        problem: String,
    },
}
