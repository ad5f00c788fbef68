//! What a check found.

use serde::{Deserialize, Serialize};

/// Characters of an example.
const MAX_EXAMPLE: usize = 60;

/// The kind of a problem with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Bytes that are not UTF-8.
    InvalidUtf8,
    /// A byte order mark at the start of a file.
    ByteOrderMark,
    /// Line ends of Windows.
    CarriageReturns,
    /// NUL characters.
    Nul,
    /// U+FFFD, which stands for bytes that another program could not decode.
    ReplacementCharacters,
    /// UTF-8 that was decoded as Latin-1.
    Mojibake,
    /// JSON lines that are read as plain text.
    JsonAsText,
    /// Documents that are copies of earlier ones.
    DuplicateDocuments,
    /// Documents that are almost copies of earlier ones.
    NearDuplicateDocuments,
    /// Text that marks the ends of documents, in a file that is read as one document.
    MissingBoundaries,
    /// Text that the vocabulary lacks.
    UnknownText,
    /// Tokens of the vocabulary that do not occur.
    UnusedTokens,
    /// Many tokens for little text.
    TokensPerByte,
    /// Documents that are longer than a sequence.
    LongDocuments,
    /// Conversations that are longer than a sequence: they are cut or left out.
    LongConversations,
    /// Conversations that are left out for another reason.
    LeftOutConversations,
    /// A validation split that is too small.
    SmallValidation,
    /// A training split that is too small.
    SmallTraining,
    /// A validation split of another kind of text.
    DifferentSplits,
    /// Validation text that is also in the training split.
    Leakage,
    /// Data that cannot be read at all.
    Unreadable,
}

/// A problem with data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// How often it occurs.
    pub count: u64,
    /// What is wrong, as a sentence that begins with the count, which it does not have.
    pub problem: String,
    /// A place or a text where it occurs.
    pub example: String,
    /// How to fix it.
    pub fix: String,
}

/// The form that agrees with `count`.
pub(super) fn agree<'a>(count: u64, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

impl Finding {
    pub(super) fn new(
        kind: FindingKind,
        count: u64,
        problem: impl Into<String>,
        example: &str,
        fix: impl Into<String>,
    ) -> Self {
        let shortened: String = example.chars().take(MAX_EXAMPLE).collect();
        let dots = if shortened.len() < example.len() {
            "…"
        } else {
            ""
        };
        Self {
            kind,
            count,
            problem: problem.into(),
            example: shortened + dots,
            fix: fix.into(),
        }
    }
}
