//! What is reported while models are downloaded.

use std::time::Duration;

/// Something that happens during a download.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum HubEvent<'a> {
    /// Bytes have arrived.
    Progress {
        /// The file that is downloaded.
        file: &'a str,
        /// Bytes that are there, of all files of this step; those of an earlier, interrupted download are included.
        bytes: u64,
        /// Bytes of all files of this step.
        total: u64,
    },
    /// Another process downloads this file; it is waited for.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// A request failed and will be repeated.
    Retry {
        /// What happened.
        problem: &'a str,
        /// Pause before the repetition.
        delay: Duration,
    },
    /// The server cannot be reached; the files of the cache are used.
    UsingCache {
        /// What happened.
        problem: &'a str,
        /// The commit in the cache.
        commit: &'a str,
    },
}
