//! Built-in corpora.

mod chats;
mod grammar;
mod plots;
mod stories;
mod translations;

pub use self::chats::{StoryChat, StoryChats};
pub use self::stories::Stories;
pub use self::translations::{STATQUEST_PAIRS, Translations};

/// Default number of built-in stories (about 1.5 MB).
pub(crate) const DEFAULT_STORIES: usize = 1900;

/// The two documents of `StatQuest`'s decoder-only Transformer (Josh Starmer's example): two
/// prompts with the same completion.
pub const STATQUEST: [&str; 2] = [
    "what is statquest <EOS> awesome <EOS>",
    "statquest is what <EOS> awesome <EOS>",
];
