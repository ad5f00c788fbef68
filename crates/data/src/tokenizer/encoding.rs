//! The ids of a text, and what of it the vocabulary does not have.

use std::borrow::Cow;

/// The ids of an encoded text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// Token ids, each below the tokenizer's `vocab_size`.
    pub ids: Vec<u32>,
    /// Distinct parts of the text that are not in the vocabulary, in order of first occurrence: at most
    /// [`Encoding::MAX_UNKNOWN`], each truncated to [`Encoding::MAX_UNKNOWN_CHARS`]. Each was replaced
    /// by the unknown token, or dropped if there is none.
    pub unknown: Vec<String>,
    /// Number of all parts of the text that are not in the vocabulary, repeated ones included.
    pub unknown_count: usize,
    /// How many of them were dropped: they have no id.
    pub dropped_count: usize,
}

impl Encoding {
    /// Maximum length of the list of unknown text.
    pub const MAX_UNKNOWN: usize = 1000;

    /// Maximum number of characters of an unknown text; "…" marks truncation.
    pub const MAX_UNKNOWN_CHARS: usize = 32;

    /// Number of parts of the text: those with an id, and those that were dropped.
    pub fn part_count(&self) -> usize {
        self.ids.len() + self.dropped_count
    }

    /// Records text that was replaced by the unknown token.
    pub(crate) fn record_unknown(&mut self, text: &str) {
        self.unknown_count += 1;
        self.list_unknown(text);
    }

    /// Records text that has no id.
    pub(crate) fn record_dropped(&mut self, text: &str) {
        self.dropped_count += 1;
        self.record_unknown(text);
    }

    /// Adds the unknown text of `other`, but not its ids.
    pub fn add_unknown(&mut self, other: &Self) {
        self.unknown_count += other.unknown_count;
        self.dropped_count += other.dropped_count;
        for text in &other.unknown {
            self.list_unknown(text);
        }
    }

    fn list_unknown(&mut self, text: &str) {
        if self.unknown.len() >= Self::MAX_UNKNOWN {
            return;
        }
        let text = match text.char_indices().nth(Self::MAX_UNKNOWN_CHARS) {
            // Text that ends in "…" may already be truncated.
            Some((end, _)) if &text[end..] != "…" => Cow::Owned(format!("{}…", &text[..end])),
            _ => Cow::Borrowed(text),
        };
        if !self.unknown.iter().any(|known| *known == text) {
            self.unknown.push(text.into_owned());
        }
    }
}
