//! Texts that come with the program.

mod grammar;
mod plots;
mod stories;

pub use self::stories::Stories;

/// Number of built-in stories where the config names none: about 1.5 MB.
pub(crate) const DEFAULT_STORIES: usize = 1900;

/// The two documents of `StatQuest`'s decoder-only Transformer (Josh Starmer's example): each
/// question is followed by the same answer.
pub const STATQUEST: [&str; 2] = [
    "what is statquest <EOS> awesome <EOS>",
    "statquest is what <EOS> awesome <EOS>",
];
