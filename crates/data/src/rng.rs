//! The random streams of this crate.

pub use nextword_base::rng::{CounterRng, RandomSequence};

/// Numbers for [`CounterRng::with_stream`]; each use has its own stream.
pub(crate) mod stream {
    pub(crate) const WINDOWS: u64 = 1;
    pub(crate) const EPOCHS: u64 = 2;
    pub(crate) const PHASES: u64 = 3;
    pub(crate) const SPLIT: u64 = 4;
    pub(crate) const SAMPLE_EPOCHS: u64 = 5;
    pub(crate) const SAMPLE_GROUPS: u64 = 6;
    /// Story `i` uses stream `STORIES + i`; far from the small numbers above.
    pub(crate) const STORIES: u64 = 1 << 40;
    /// Conversation `i` about a story uses stream `STORY_CHATS + i`.
    pub(crate) const STORY_CHATS: u64 = 1 << 41;
    /// The wrong replies about story `i` use streams of `WRONG_REPLIES + i`.
    pub(crate) const WRONG_REPLIES: u64 = 1 << 43;
}
