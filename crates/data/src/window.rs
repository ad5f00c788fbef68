//! Which tokens come next: a pure function of (seed, number of the sequence).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::permutation::Permutation;
use crate::rng::{Random, stream};
use crate::tokens::Tokens;

/// The order in which windows are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each window is drawn anew, with replacement; in packed text it may start at any token.
    #[default]
    Random,
    /// Every window once, in an order of its own in each epoch.
    Epoch,
}

/// What a window may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Windows run across the borders of documents, each full.
    #[default]
    Packed,
    /// A window holds tokens of one document; the rest of the row is padding without loss.
    Documents,
}

/// The windows of one token stream, in the order of a seed.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    cut: Cut,
    order: Order,
    seed: u64,
    context_length: usize,
}

/// How the stream is cut.
#[derive(Debug, Clone)]
enum Cut {
    /// `tokens` ids without borders.
    Packed { tokens: usize },
    /// See [`DocumentWindows`].
    Documents(DocumentWindows),
}

impl Windows {
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
                "context_length = 0 holds no token; hint: set it to 1 or more",
            ));
        }
        let cut = match packing {
            Packing::Packed if tokens.len() <= context_length => {
                return Err(DataError::TooShort {
                    split,
                    have: tokens.len(),
                    context_length,
                });
            }
            Packing::Packed => Cut::Packed {
                tokens: tokens.len(),
            },
            Packing::Documents => {
                Cut::Documents(DocumentWindows::new(tokens, split, context_length)?)
            }
        };
        Ok(Self {
            cut,
            order,
            seed,
            context_length,
        })
    }

    /// Windows in one epoch: the non-overlapping ones.
    pub(crate) fn per_epoch(&self) -> usize {
        match &self.cut {
            Cut::Packed { tokens } => (tokens - 1) / self.context_length,
            Cut::Documents(windows) => windows.count(),
        }
    }

    /// The token range of sequence number `sequence`: its inputs and one more, the last target.
    pub(crate) fn range(&self, sequence: u64) -> Range<usize> {
        match &self.cut {
            Cut::Packed { tokens } => {
                let start = match self.order {
                    Order::Random => self.random_below(sequence, tokens - self.context_length),
                    Order::Epoch => self.epoch_start(sequence, *tokens),
                };
                start..start + self.context_length + 1
            }
            Cut::Documents(windows) => windows.range(match self.order {
                Order::Random => self.random_below(sequence, windows.count()),
                Order::Epoch => self.permuted(sequence).1,
            }),
        }
    }

    fn random_below(&self, sequence: u64, n: usize) -> usize {
        Random::new(self.seed, stream::WINDOWS).below(sequence, n as u64) as usize
    }

    /// The epoch that `sequence` is in, and the window that comes at its place there.
    fn permuted(&self, sequence: u64) -> (u64, usize) {
        let count = self.per_epoch() as u64;
        let (epoch, place) = (sequence / count, sequence % count);
        let key = Random::new(self.seed, stream::EPOCHS).u64(epoch);
        (epoch, Permutation::new(key, count).at(place) as usize)
    }

    /// Windows lie side by side. What is left over at the end (less than a window) is shared
    /// between both ends by a phase that each epoch draws, so that no token is never seen.
    fn epoch_start(&self, sequence: u64, tokens: usize) -> usize {
        let (epoch, window) = self.permuted(sequence);
        let left_over = (tokens - 1) % self.context_length;
        let phase =
            Random::new(self.seed, stream::PHASES).below(epoch, left_over as u64 + 1) as usize;
        phase + window * self.context_length
    }
}

/// The windows of each document: as many as it takes to predict each of its tokens but the first.
#[derive(Debug, Clone)]
pub(crate) struct DocumentWindows {
    tokens: Tokens,
    context_length: usize,
    /// `before[d]` is the number of windows in documents before `d`; one entry more at the end.
    before: Vec<u64>,
}

impl DocumentWindows {
    pub(crate) fn new(
        tokens: &Tokens,
        split: &'static str,
        context_length: usize,
    ) -> Result<Self, DataError> {
        let mut before = Vec::with_capacity(tokens.document_count() + 1);
        let mut count = 0;
        before.push(count);
        for document in 0..tokens.document_count() {
            let targets = tokens.document(document).len().saturating_sub(1);
            count += targets.div_ceil(context_length) as u64;
            before.push(count);
        }
        if count == 0 {
            return Err(DataError::config(format!(
                "the {split} data has no document of 2 tokens or more; hint: give more text, or set packing = \"packed\""
            )));
        }
        Ok(Self {
            tokens: tokens.clone(),
            context_length,
            before,
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.before.last().copied().unwrap_or(0) as usize
    }

    /// The token range of window `window` (below [`Self::count`]).
    pub(crate) fn range(&self, window: usize) -> Range<usize> {
        let after = self.before.partition_point(|&first| first <= window as u64);
        let document = self.tokens.document(after.saturating_sub(1));
        let inside = window - self.before[after.saturating_sub(1)] as usize;
        let start = document.start + inside * self.context_length;
        start..(start + self.context_length + 1).min(document.end)
    }
}
