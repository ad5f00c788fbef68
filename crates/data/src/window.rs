//! Window order: a pure function of (seed, sequence index).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::permutation::Permutation;
use crate::rng::{CounterRng, stream};
use crate::tokens::Tokens;

/// The order in which windows are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Windows are sampled with replacement; packed windows may start at any token.
    #[default]
    Random,
    /// Each window is visited once per epoch, in a new order each epoch.
    Epoch,
}

/// Whether windows may cross document boundaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Windows cross document boundaries and are always full.
    #[default]
    Packed,
    /// A window contains tokens of one document; the rest of the row is padding without loss.
    Documents,
    /// A row contains several samples, such as conversations. Each attends to itself only, and its positions count
    /// from 0. For [`Samples`](crate::Samples), which otherwise have a row each.
    Samples,
}

/// The error for [`Packing::Samples`] of a text.
pub(crate) fn without_samples() -> DataError {
    DataError::config(
        "data.packing = \"samples\" packs conversations, but the data has none; hint: set data.conversations, or \
         data.packing to \"packed\" or \"documents\"",
    )
}

/// The windows of one token stream, in the order of a seed.
#[derive(Debug, Clone)]
pub(crate) struct TrainWindows {
    layout: WindowLayout,
    order: Order,
    seed: u64,
    context_length: usize,
}

/// How the token stream is divided into windows.
#[derive(Debug, Clone)]
enum WindowLayout {
    /// A stream of `tokens` ids; document boundaries are ignored.
    Packed { tokens: usize },
    /// See [`DocumentWindows`].
    Documents(DocumentWindows),
}

impl TrainWindows {
    pub(crate) fn new(
        tokens: &Tokens,
        split: &'static str,
        context_length: usize,
        order: Order,
        packing: Packing,
        seed: u64,
    ) -> Result<Self, DataError> {
        if context_length == 0 {
            return Err(DataError::config(
                "sequences of 0 tokens are too short; hint: set train.sequence_length to 1 or more",
            ));
        }
        let layout = match packing {
            Packing::Packed if tokens.len() <= context_length => {
                return Err(DataError::TooShort {
                    split,
                    available: tokens.len(),
                    length: context_length,
                });
            }
            Packing::Packed => WindowLayout::Packed {
                tokens: tokens.len(),
            },
            Packing::Documents => {
                WindowLayout::Documents(DocumentWindows::new(tokens, split, context_length)?)
            }
            Packing::Samples => return Err(without_samples()),
        };
        Ok(Self {
            layout,
            order,
            seed,
            context_length,
        })
    }

    /// Number of windows per epoch (non-overlapping windows).
    pub(crate) fn per_epoch(&self) -> usize {
        match &self.layout {
            WindowLayout::Packed { tokens } => (tokens - 1) / self.context_length,
            WindowLayout::Documents(windows) => windows.count(),
        }
    }

    /// Number of targets per epoch: of all non-overlapping windows.
    pub(crate) fn targets_per_epoch(&self) -> u64 {
        match &self.layout {
            WindowLayout::Packed { .. } => (self.per_epoch() * self.context_length) as u64,
            WindowLayout::Documents(windows) => windows.targets,
        }
    }

    /// Returns the token range of sequence `sequence`: its inputs plus one token, the last target.
    pub(crate) fn range(&self, sequence: u64) -> Range<usize> {
        match &self.layout {
            WindowLayout::Packed { tokens } => {
                let start = match self.order {
                    Order::Random => self.random_below(sequence, tokens - self.context_length),
                    Order::Epoch => self.epoch_start(sequence, *tokens),
                };
                start..start + self.context_length + 1
            }
            WindowLayout::Documents(windows) => windows.range(match self.order {
                Order::Random => self.random_below(sequence, windows.count()),
                Order::Epoch => self.epoch_and_window(sequence).1,
            }),
        }
    }

    fn random_below(&self, sequence: u64, n: usize) -> usize {
        CounterRng::with_stream(self.seed, stream::WINDOWS).below(sequence, n as u64) as usize
    }

    /// Returns the epoch of `sequence` and the window at its position in that epoch.
    fn epoch_and_window(&self, sequence: u64) -> (u64, usize) {
        let count = self.per_epoch() as u64;
        let (epoch, position) = (sequence / count, sequence % count);
        let key = CounterRng::with_stream(self.seed, stream::EPOCHS).at(epoch);
        (epoch, Permutation::new(key, count).at(position) as usize)
    }

    /// Returns the start of a window. Windows are adjacent; the remainder (less than one window) is
    /// distributed between both ends by a random offset per epoch, so every token is eventually used.
    fn epoch_start(&self, sequence: u64, tokens: usize) -> usize {
        let (epoch, window) = self.epoch_and_window(sequence);
        let remainder = (tokens - 1) % self.context_length;
        let phase = CounterRng::with_stream(self.seed, stream::PHASES)
            .below(epoch, remainder as u64 + 1) as usize;
        phase + window * self.context_length
    }
}

/// The windows of each document. Together they predict every token of it except the first, or except its
/// first `prefix`.
#[derive(Debug, Clone)]
pub(crate) struct DocumentWindows {
    tokens: Tokens,
    context_length: usize,
    /// Number of tokens at the start of each document that are not targets.
    prefix: usize,
    /// `first_window[d]` is the number of windows before document `d`; one extra entry at the end.
    first_window: Vec<u64>,
    /// Number of targets in all documents.
    targets: u64,
}

impl DocumentWindows {
    pub(crate) fn new(
        tokens: &Tokens,
        split: &'static str,
        context_length: usize,
    ) -> Result<Self, DataError> {
        Self::after_prefix(tokens, split, context_length, 1)
    }

    /// The windows of documents whose first `prefix` tokens (at least one) are not targets.
    pub(crate) fn after_prefix(
        tokens: &Tokens,
        split: &'static str,
        context_length: usize,
        prefix: usize,
    ) -> Result<Self, DataError> {
        let prefix = prefix.max(1);
        let mut first_window = Vec::with_capacity(tokens.document_count() + 1);
        let (mut count, mut all_targets) = (0, 0);
        first_window.push(count);
        for document in 0..tokens.document_count() {
            let targets = tokens.document(document).len().saturating_sub(prefix);
            if targets > 0 {
                let others = targets.saturating_sub(first_window_targets(context_length, prefix));
                count += 1 + others.div_ceil(context_length) as u64;
            }
            all_targets += targets as u64;
            first_window.push(count);
        }
        if count == 0 {
            return Err(DataError::config(format!(
                "the {split} data has no document of 2 tokens or more; hint: add text, or set data.packing = \"packed\""
            )));
        }
        Ok(Self {
            tokens: tokens.clone(),
            context_length,
            prefix,
            first_window,
            targets: all_targets,
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.first_window.last().copied().unwrap_or(0) as usize
    }

    /// The token range of window `window` (below [`Self::count`]): its targets and the token before them.
    pub(crate) fn range(&self, window: usize) -> Range<usize> {
        let (document, targets) = self.document_and_targets(window);
        targets.start - 1..targets.end.min(document.end)
    }

    /// The token range of window `window`, extended to the left as far as its document and the context allow,
    /// and the number of targets at its start that other windows predict.
    pub(crate) fn range_with_left_context(&self, window: usize) -> (Range<usize>, usize) {
        let (document, targets) = self.document_and_targets(window);
        let end = targets.end.min(document.end);
        let extended = end.saturating_sub(self.context_length + 1);
        let extended = extended.max(document.start);
        (extended..end, targets.start - 1 - extended)
    }

    /// The document of window `window`, and the window's targets if the document is long enough.
    fn document_and_targets(&self, window: usize) -> (Range<usize>, Range<usize>) {
        let after = self
            .first_window
            .partition_point(|&first| first <= window as u64);
        let document = self.tokens.document(after.saturating_sub(1));
        let window_in_document = window - self.first_window[after.saturating_sub(1)] as usize;
        let first_target = document.start + self.prefix;
        let first_end = first_target + first_window_targets(self.context_length, self.prefix);
        let targets = match window_in_document.checked_sub(1) {
            None => first_target..first_end,
            Some(before) => {
                let start = first_end + before * self.context_length;
                start..start + self.context_length
            }
        };
        (document, targets)
    }
}

/// The number of targets in the first window of a document that begins with `prefix` tokens (at least one) before its text:
/// as many as leave space for all of them.
pub fn first_window_targets(context_length: usize, prefix: usize) -> usize {
    (context_length + 1).saturating_sub(prefix).max(1)
}
