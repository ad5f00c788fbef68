//! Training batches, addressed by step.

use std::ops::Range;

use crate::batch::{TokenBatch, check_size};
use crate::error::DataError;
use crate::prefetch::Prefetch;
use crate::samples::{SampleOrder, Samples, check_samples, padded_length};
use crate::tokens::Tokens;
use crate::window::{Order, Packing, TrainWindows};

/// How the training stream is divided into windows and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Tokens per sequence.
    pub context_length: usize,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step (config key `accumulation`).
    pub grad_accum_steps: usize,
    /// Sampling with or without replacement.
    pub order: Order,
    /// Whether windows may cross document boundaries.
    pub packing: Packing,
    /// Seed of the window order.
    pub seed: u64,
    /// The id that pads short rows ([`crate::SpecialTokens::padding_id`]).
    pub padding_id: u32,
}

impl Default for LoaderConfig {
    /// 12 sequences of 64 tokens, in random order, packed; seed 0.
    fn default() -> Self {
        Self {
            context_length: 64,
            batch_size: 12,
            grad_accum_steps: 1,
            order: Order::default(),
            packing: Packing::default(),
            seed: 0,
            padding_id: 0,
        }
    }
}

/// Maximum number of micro-batches per step.
const MAX_GRAD_ACCUM_STEPS: usize = 65_536;

/// Training batches as a pure function of (seed, step, micro-batch).
///
/// Step `s` contains sequences `s * n` to `(s + 1) * n - 1` of one stream, with
/// `n = batch_size * grad_accum_steps`. The stream is therefore the same for 32 x 1, 16 x 2 and
/// 8 x 4.
///
/// # Example
///
/// ```
/// use nextword_data::{Loader, LoaderConfig, Order, Packing, Tokens};
///
/// let loader = |batch_size, grad_accum_steps| {
///     let (order, packing) = (Order::Epoch, Packing::Packed);
///     let config = LoaderConfig {
///         context_length: 8, batch_size, grad_accum_steps, order, packing, seed: 7, padding_id: 0,
///     };
///     Loader::new(Tokens::from_ids((0..100).collect()), config)
/// };
/// // One batch of four rows equals two micro-batches of two.
/// let (whole, halves) = (loader(4, 1)?.batch(3, 0)?, loader(2, 2)?);
/// assert_eq!(whole.inputs, [halves.batch(3, 0)?.inputs, halves.batch(3, 1)?.inputs].concat());
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Loader {
    rows: Rows,
    config: LoaderConfig,
}

/// Where the rows of batches come from.
#[derive(Debug, Clone)]
enum Rows {
    Windows {
        tokens: Tokens,
        windows: TrainWindows,
    },
    Samples {
        samples: Samples,
        order: SampleOrder,
    },
}

impl Loader {
    /// Creates a loader for `tokens`.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if there are fewer than `context_length + 1` tokens (packed),
    /// [`DataError::Config`] if a size is zero, for a batch of more than 2^28 tokens, more than
    /// 65,536 micro-batches in a step, or documents without targets.
    pub fn new(tokens: Tokens, config: LoaderConfig) -> Result<Self, DataError> {
        check(&config)?;
        let LoaderConfig {
            context_length,
            order,
            packing,
            seed,
            ..
        } = config;
        let windows = TrainWindows::new(&tokens, "training", context_length, order, packing, seed)?;
        Ok(Self {
            rows: Rows::Windows { tokens, windows },
            config,
        })
    }

    /// Creates a loader for `samples`, one in each row. Each occurs once per epoch, in an order that depends on the
    /// seed and on the number of samples per step, not on how a step is divided into micro-batches. The samples of a
    /// step have similar lengths. Rows are as long as the longest of their step, rounded up to a multiple of 32 but at
    /// most `context_length`, so that they have the same padding and the same dropout for every division; the first
    /// micro-batch of all has the longest row. `order` and `packing` of the configuration have no effect.
    ///
    /// # Errors
    /// [`DataError::Config`] for the sizes as in [`new`](Self::new), without samples, and for a sample with more than
    /// `context_length` inputs.
    ///
    /// ```
    /// use nextword_data::{IGNORE, Loader, LoaderConfig, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// for length in 3..43 {
    ///     builder.push(&vec![1; length], &[length - 1..length])?; // The last token is trained.
    /// }
    /// let config = LoaderConfig { context_length: 64, batch_size: 4, ..LoaderConfig::default() };
    /// let loader = Loader::from_samples(builder.finish(), config)?;
    /// let batch = loader.batch(0, 0)?;
    /// assert_eq!((batch.batch, batch.seq, batch.target_count()), (4, 64, 4));
    /// assert_eq!(batch.inputs[..41], [1; 41]); // The longest sample is in the first batch.
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_samples(samples: Samples, config: LoaderConfig) -> Result<Self, DataError> {
        check(&config)?;
        check_samples(&samples, "training", config.context_length)?;
        let per_step = config.batch_size * config.grad_accum_steps;
        let order = SampleOrder::new(&samples, per_step, config.seed);
        Ok(Self {
            rows: Rows::Samples { samples, order },
            config,
        })
    }

    /// The loader's settings.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// Sequences per step, over all micro-batches.
    pub fn sequences_per_step(&self) -> usize {
        self.config.batch_size * self.config.grad_accum_steps
    }

    /// Sequences per epoch: the number of non-overlapping windows or of samples in the data.
    pub fn sequences_per_epoch(&self) -> usize {
        match &self.rows {
            Rows::Windows { windows, .. } => windows.per_epoch(),
            Rows::Samples { samples, .. } => samples.len(),
        }
    }

    /// Mean number of targets per step, over all micro-batches. Windows that are padded
    /// ([`Packing::Documents`]) have fewer targets than tokens.
    ///
    /// ```
    /// use nextword_data::{Loader, LoaderConfig, Packing, Tokens};
    ///
    /// let tokens = Tokens::from_documents(vec![vec![1, 2, 3], vec![4, 5, 6, 7, 8]]);
    /// let config = LoaderConfig { context_length: 8, batch_size: 4, packing: Packing::Documents, ..Default::default() };
    /// let loader = Loader::new(tokens, config)?;
    /// assert_eq!(loader.targets_per_step(), 4.0 * (2.0 + 4.0) / 2.0); // Of 4 * 8 tokens.
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn targets_per_step(&self) -> f64 {
        let targets = match &self.rows {
            Rows::Windows { windows, .. } => windows.targets_per_epoch() as f64,
            Rows::Samples { samples, .. } => samples.trained_count() as f64,
        };
        self.sequences_per_step() as f64 * targets / self.sequences_per_epoch() as f64
    }

    /// Returns micro-batch `micro` (below `grad_accum_steps`) of step `step`, both zero-based. Shape
    /// `[batch_size, context_length]`; rows of samples may be shorter.
    ///
    /// # Errors
    /// [`DataError::Shard`] if the token file contains an id outside its vocabulary.
    pub fn batch(&self, step: u64, micro: usize) -> Result<TokenBatch, DataError> {
        let LoaderConfig {
            batch_size,
            context_length,
            padding_id,
            ..
        } = self.config;
        let first = step * self.sequences_per_step() as u64 + (micro * batch_size) as u64;
        let sequences = first..first + batch_size as u64;
        let (tokens, windows) = match &self.rows {
            Rows::Samples { samples, order } => {
                let indices: Vec<usize> = sequences.map(|sequence| order.at(sequence)).collect();
                let seq = padded_length(order.longest_in_step(step), context_length);
                return samples.rows(&indices, seq, padding_id);
            }
            Rows::Windows { tokens, windows } => (tokens, windows),
        };
        let mut batch = TokenBatch::with_capacity(batch_size, context_length);
        let mut ids = Vec::with_capacity(context_length + 1);
        for sequence in sequences {
            ids.clear();
            tokens.read(windows.range(sequence), &mut ids)?;
            batch.push_row(&ids, padding_id);
        }
        Ok(batch)
    }

    /// Returns an endless iterator over batches from step `from_step` on, in (step, micro-batch)
    /// order. A thread prepares up to `depth` batches in advance (at most 64) and stops when the
    /// iterator is dropped.
    pub fn prefetch(&self, from_step: u64, depth: usize) -> Prefetch {
        self.prefetch_part(from_step, depth, 0..self.config.grad_accum_steps)
    }

    /// As [`prefetch`](Self::prefetch), with only the micro-batches `micros` of each step: those of one process of
    /// several that share the steps.
    ///
    /// ```
    /// use nextword_data::{Loader, LoaderConfig, Tokens};
    ///
    /// let config = LoaderConfig { context_length: 8, batch_size: 1, grad_accum_steps: 4, ..LoaderConfig::default() };
    /// let loader = Loader::new(Tokens::from_ids((0..100).collect()), config)?;
    /// let mut second_half = loader.prefetch_part(0, 2, 2..4);
    /// for (step, micro) in [(0, 2), (0, 3), (1, 2)] {
    ///     assert_eq!(second_half.next().unwrap()?.inputs, loader.batch(step, micro)?.inputs);
    /// }
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn prefetch_part(&self, from_step: u64, depth: usize, micros: Range<usize>) -> Prefetch {
        Prefetch::start(self.clone(), from_step, depth, micros)
    }
}

/// Checks the sizes of batches.
fn check(config: &LoaderConfig) -> Result<(), DataError> {
    for (name, value) in [
        ("batch_size", config.batch_size),
        ("accumulation", config.grad_accum_steps),
    ] {
        if value == 0 {
            return Err(DataError::config(format!(
                "{name} = 0 is too small; hint: set it to 1 or more"
            )));
        }
    }
    if config.grad_accum_steps > MAX_GRAD_ACCUM_STEPS {
        return Err(DataError::config(format!(
            "accumulation = {} exceeds the maximum of {MAX_GRAD_ACCUM_STEPS} micro-batches per step; hint: reduce it, \
             or increase batch_size",
            config.grad_accum_steps
        )));
    }
    check_size(config.batch_size, config.context_length)
}
