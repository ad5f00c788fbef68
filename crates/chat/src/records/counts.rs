//! What was read, what was left out, and where.

use std::collections::BTreeMap;
use std::fmt;

use crate::RecordSource;

/// The format of a record, told by its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum RecordFormat {
    /// `messages` with `role` and `content`, as in `OpenAI`'s API.
    OpenAi,
    /// `conversations` with `from` and `value`.
    ShareGpt,
    /// `instruction` and `output`, with an optional `input`, `system` and `history`.
    Alpaca,
    /// `prompt` and `completion`, or `prompt` and `response`, `question` and `answer`, `query` and `response`,
    /// `input` and `output`.
    Completion,
    /// `text`.
    Text,
    /// `chosen` and `rejected`, or `preferred_output` and `non_preferred_output`.
    Preference,
    /// `prompt`, `completion` and `label`.
    Rated,
}

impl RecordFormat {
    /// A short name for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "messages",
            Self::ShareGpt => "ShareGPT",
            Self::Alpaca => "Alpaca",
            Self::Completion => "prompt and completion",
            Self::Text => "text",
            Self::Preference => "preference",
            Self::Rated => "rated completion",
        }
    }
}

impl fmt::Display for RecordFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a record, or the end of one, is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// A conversation without a message of the assistant.
    NoAssistant,
    /// Messages after the assistant's last one: they are cut off, and the record stays.
    TrailingMessages,
    /// A message of the assistant without content, or an empty completion.
    EmptyAssistant,
    /// A message of another role without content, or an empty text.
    EmptyMessage,
    /// No message of the assistant is to be trained.
    NothingTrained,
    /// Both completions of a preference are the same.
    EqualCompletions,
}

impl DropReason {
    /// The reason as part of a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoAssistant => "without a message of the assistant",
            Self::TrailingMessages => {
                "with messages after the assistant's last one, which were cut off"
            }
            Self::EmptyAssistant => "with an empty message of the assistant",
            Self::EmptyMessage => "with an empty message",
            Self::NothingTrained => "without a trained message",
            Self::EqualCompletions => "with two equal completions",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How often something was left out, and where first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Number of records.
    pub count: usize,
    /// The first of them, at most [`Dropped::MAX_SOURCES`].
    pub first: Vec<RecordSource>,
}

impl Dropped {
    /// Maximum number of listed sources.
    pub const MAX_SOURCES: usize = 5;
}

/// How many records of each format there are, and what was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Records by format, dropped ones included.
    pub formats: BTreeMap<RecordFormat, usize>,
    /// What was left out, by reason.
    pub dropped: BTreeMap<DropReason, Dropped>,
}

impl RecordCounts {
    /// The number of records, dropped ones included.
    pub fn total(&self) -> usize {
        self.formats.values().sum()
    }

    /// Counts something that is left out.
    pub fn drop_record(&mut self, reason: DropReason, source: &RecordSource) {
        let dropped = self.dropped.entry(reason).or_default();
        dropped.count += 1;
        if dropped.first.len() < Dropped::MAX_SOURCES {
            dropped.first.push(source.clone());
        }
    }
}
