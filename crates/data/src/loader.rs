//! Training batches by number.

use crate::batch::{TokenBatch, check_size};
use crate::error::DataError;
use crate::prefetch::Prefetch;
use crate::tokens::Tokens;
use crate::window::{Order, Packing, Windows};

/// How the training stream is cut and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Tokens in a sequence.
    pub context_length: usize,
    /// Sequences in one micro-batch.
    pub batch_size: usize,
    /// Micro-batches in one step.
    pub accumulation: usize,
    /// With or without replacement.
    pub order: Order,
    /// Across documents or cut at their borders.
    pub packing: Packing,
    /// Seed of the order.
    pub seed: u64,
    /// The id that fills short rows ([`crate::Specials::padding`]).
    pub padding: u32,
}

/// The most micro-batches in one step.
const MAX_ACCUMULATION: usize = 65_536;

/// Training batches as a pure function of (seed, step, micro-batch).
///
/// Step `s` holds the sequences `s * n` to `(s + 1) * n - 1` of one stream, with
/// `n = batch_size * accumulation`; so the stream is the same for 32 x 1, 16 x 2 and 8 x 4.
#[derive(Debug, Clone)]
pub struct Loader {
    tokens: Tokens,
    windows: Windows,
    config: LoaderConfig,
}

impl Loader {
    /// The batches of `tokens`.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if there are fewer than `context_length + 1` tokens (packed),
    /// [`DataError::Config`] for a zero among the sizes, a batch of more than 2^28 tokens, more than
    /// 65,536 micro-batches in a step, or documents without targets.
    pub fn new(tokens: Tokens, config: LoaderConfig) -> Result<Self, DataError> {
        for (name, value) in [
            ("batch_size", config.batch_size),
            ("accumulation", config.accumulation),
        ] {
            if value == 0 {
                return Err(DataError::config(format!(
                    "{name} = 0 gives empty steps; hint: set it to 1 or more"
                )));
            }
        }
        if config.accumulation > MAX_ACCUMULATION {
            return Err(DataError::config(format!(
                "accumulation = {} is more than the {MAX_ACCUMULATION} micro-batches that a step may have; hint: make \
                 it smaller, or batch_size larger",
                config.accumulation
            )));
        }
        check_size(config.batch_size, config.context_length)?;
        let LoaderConfig {
            context_length,
            order,
            packing,
            seed,
            ..
        } = config;
        let windows = Windows::new(&tokens, "training", context_length, order, packing, seed)?;
        Ok(Self {
            tokens,
            windows,
            config,
        })
    }

    /// The settings that it was made with.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Sequences in one step, over all its micro-batches.
    pub fn sequences_per_step(&self) -> usize {
        self.config.batch_size * self.config.accumulation
    }

    /// Windows that lie side by side in the data: what one epoch visits.
    pub fn sequences_per_epoch(&self) -> usize {
        self.windows.per_epoch()
    }

    /// Micro-batch `micro` (below `accumulation`) of step `step`, both from 0. Shape
    /// `[batch_size, context_length]`.
    ///
    /// # Errors
    /// [`DataError::Shard`] if the token file holds an id that its vocabulary does not have.
    pub fn batch(&self, step: u64, micro: usize) -> Result<TokenBatch, DataError> {
        let LoaderConfig {
            batch_size,
            context_length,
            padding,
            ..
        } = self.config;
        let first = step * self.sequences_per_step() as u64 + (micro * batch_size) as u64;
        let mut batch = TokenBatch::with_room(batch_size, context_length);
        let mut ids = Vec::with_capacity(context_length + 1);
        for sequence in first..first + batch_size as u64 {
            ids.clear();
            self.tokens.read(self.windows.range(sequence), &mut ids)?;
            batch.push_row(&ids, padding);
        }
        Ok(batch)
    }

    /// Batches from step `from_step` on, without end, in the order (step, micro-batch); a thread
    /// makes up to `depth` of them in advance (at most 64). It ends when the iterator is dropped.
    pub fn prefetch(&self, from_step: u64, depth: usize) -> Prefetch {
        Prefetch::start(self.clone(), from_step, depth)
    }
}
