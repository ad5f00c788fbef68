//! Training batches, addressed by step.

use std::ops::Range;

use crate::batch::{TokenBatch, check_size};
use crate::error::DataError;
use crate::masked::{MaskedRows, MaskedTokens};
use crate::prefetch::Prefetch;
use crate::samples::{SampleLayout, SampleOrder, Samples, check_samples, padded_length};
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
        masked: Option<MaskedTokens>,
    },
    Samples {
        samples: Samples,
        order: SampleOrder,
    },
    /// Samples 2i and 2i + 1 are pair i.
    Pairs {
        samples: Samples,
        order: SampleOrder,
        /// Whether the first sample of each pair alone is trained.
        is_first_trained: bool,
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
            rows: Rows::Windows {
                tokens,
                windows,
                masked: None,
            },
            config,
        })
    }

    /// Creates a loader for `samples`, one in each row. Each occurs once per epoch, in an order that depends on the
    /// seed and on the number of rows per step, not on how a step is divided into micro-batches. The rows of a
    /// step have similar lengths. Rows are as long as the longest of their step, rounded up to a multiple of 32 but at
    /// most `context_length`, so that they have the same padding and the same dropout for every division; the first
    /// micro-batch of all has the longest row. `order` of the configuration has no effect.
    ///
    /// With [`Packing::Samples`], a row has as many samples as fit into `context_length` tokens (best-fit decreasing
    /// over all samples of an epoch), and the batch's mask separates them. If no two of them fit, the batches are the
    /// same as without packing.
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
        if config.packing == Packing::Samples && samples.layout() == SampleLayout::EncoderDecoder {
            return Err(DataError::config(
                "data.packing = \"samples\" does not pack the sources of an encoder-decoder; hint: leave out data.packing",
            ));
        }
        let per_step = config.batch_size * config.grad_accum_steps;
        let capacity = (config.packing == Packing::Samples).then_some(config.context_length);
        let order = SampleOrder::new(&samples, capacity, per_step, config.seed);
        Ok(Self {
            rows: Rows::Samples { samples, order },
            config,
        })
    }

    /// The same loader with masked tokens as targets, for encoders. Rows are the windows without their last token, which
    /// only is a target otherwise. Has no effect on samples.
    ///
    /// ```
    /// use nextword_data::{BatchMask, Loader, LoaderConfig, MaskedConfig, MaskedTokens, Tokens, TokenizerConfig, mask_token};
    ///
    /// let config = TokenizerConfig { mask: "[MASK]".to_string(), ..TokenizerConfig::words() };
    /// let tokenizer = config.build("to be or not")?;
    /// let mask_id = mask_token(&*tokenizer).expect("the tokenizer has a mask token");
    /// let masked = MaskedTokens::new(MaskedConfig::default(), &*tokenizer, mask_id, 1)?;
    /// let tokens = Tokens::from_ids([0, 1, 2, 3].repeat(30));
    /// let config = LoaderConfig { context_length: 20, batch_size: 2, ..LoaderConfig::default() };
    /// let batch = Loader::new(tokens, config)?.with_masked_tokens(masked).batch(0, 0)?;
    /// assert_eq!(batch.target_count(), 2 * 3); // 15 % of 20 tokens
    /// assert_eq!(batch.mask, BatchMask::Bidirectional(vec![20, 20]));
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    #[must_use]
    pub fn with_masked_tokens(mut self, tokens: MaskedTokens) -> Self {
        if let Rows::Windows { masked, .. } = &mut self.rows {
            *masked = Some(tokens);
        }
        self
    }

    /// Creates a loader for pairs of samples: samples 2i and 2i + 1 are pair i, and they are rows 2k and 2k + 1 of one
    /// micro-batch. `batch_size` is a number of pairs, and so is a number of sequences; order and lengths are those of
    /// [`from_samples`](Self::from_samples), with the longer sample of each pair.
    ///
    /// # Errors
    /// As [`from_samples`](Self::from_samples), and [`DataError::Config`] for an odd number of samples.
    ///
    /// ```
    /// use nextword_data::{Loader, LoaderConfig, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// for id in 0..6 {
    ///     builder.push(&[9, id], &[1..2])?;
    /// }
    /// let config = LoaderConfig { context_length: 4, batch_size: 3, ..LoaderConfig::default() };
    /// let loader = Loader::from_pairs(builder.finish(), config)?;
    /// let (batch, pairs) = (loader.batch(0, 0)?, loader.indices(0, 0));
    /// assert_eq!((batch.batch, loader.sequences_per_epoch()), (6, 3));
    /// for (pair, rows) in pairs.into_iter().zip(batch.targets.chunks(2 * batch.seq)) {
    ///     assert_eq!((rows[0], rows[batch.seq]), (2 * pair as u32, 2 * pair as u32 + 1));
    /// }
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_pairs(samples: Samples, config: LoaderConfig) -> Result<Self, DataError> {
        check(&config)?;
        check_size(2 * config.batch_size, config.context_length)?;
        if config.packing == Packing::Samples {
            return Err(DataError::config(
                "data.packing = \"samples\" does not pack pairs; hint: leave out data.packing",
            ));
        }
        check_samples(&samples, "training", config.context_length)?;
        if !samples.len().is_multiple_of(2) {
            return Err(DataError::config(format!(
                "{} samples are not pairs; hint: give an even number of them",
                samples.len()
            )));
        }
        let per_step = config.batch_size * config.grad_accum_steps;
        let order = SampleOrder::of_pairs(&samples, per_step, config.seed);
        Ok(Self {
            rows: Rows::Pairs {
                samples,
                order,
                is_first_trained: false,
            },
            config,
        })
    }

    /// Counts the targets of the first sample of each pair alone, for losses that do not train the second one. The
    /// batches stay the same. Without effect on a loader of anything but pairs.
    ///
    /// ```
    /// use nextword_data::{Loader, LoaderConfig, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// builder.push(&[9, 1], &[1..2])?;
    /// builder.push(&[9, 1, 2, 3], &[1..4])?;
    /// let config = LoaderConfig { context_length: 4, batch_size: 1, ..LoaderConfig::default() };
    /// let loader = Loader::from_pairs(builder.finish(), config)?;
    /// assert_eq!(loader.targets_per_step(), 4.0);
    /// assert_eq!(loader.with_first_trained().targets_per_step(), 1.0);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    #[must_use]
    pub fn with_first_trained(mut self) -> Self {
        if let Rows::Pairs {
            is_first_trained, ..
        } = &mut self.rows
        {
            *is_first_trained = true;
        }
        self
    }

    /// The samples of micro-batch `micro` of step `step` by their index, in the order of its rows; for a loader of pairs
    /// the pairs, in the order of their rows. Empty for a loader of tokens.
    pub fn indices(&self, step: u64, micro: usize) -> Vec<usize> {
        match &self.rows {
            Rows::Windows { .. } => Vec::new(),
            Rows::Samples { order, .. } | Rows::Pairs { order, .. } => {
                let sequences = self.sequences(step, micro);
                sequences.flat_map(|sequence| order.row(sequence)).collect()
            }
        }
    }

    /// The numbers of the sequences of a micro-batch.
    fn sequences(&self, step: u64, micro: usize) -> Range<u64> {
        let batch_size = self.config.batch_size;
        let first = step * self.sequences_per_step() as u64 + (micro * batch_size) as u64;
        first..first + batch_size as u64
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
            Rows::Samples { order, .. } | Rows::Pairs { order, .. } => order.rows_per_epoch(),
        }
    }

    /// The share of the positions that are padding, from 0 to 1, in the batches of the first epoch; `None` for windows.
    /// A last step that reaches into the second epoch counts as a whole.
    ///
    /// ```
    /// use nextword_data::{Loader, LoaderConfig, Packing, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// for length in [33, 17, 17] {
    ///     builder.push(&vec![1; length], &[length - 1..length])?; // Rows of 32, 16 and 16 inputs.
    /// }
    /// let samples = builder.finish();
    /// let padding = |packing| {
    ///     let config = LoaderConfig { context_length: 32, batch_size: 1, packing, ..LoaderConfig::default() };
    ///     Loader::from_samples(samples.clone(), config).map(|loader| loader.padding_share())
    /// };
    /// assert_eq!(padding(Packing::Packed)?, Some(1.0 / 3.0)); // Three rows of 32.
    /// assert_eq!(padding(Packing::Samples)?, Some(0.0)); // Two rows.
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn padding_share(&self) -> Option<f64> {
        let Rows::Samples { order, .. } = &self.rows else {
            return None;
        };
        let per_step = self.sequences_per_step();
        let steps = order.rows_per_epoch().div_ceil(per_step) as u64;
        let positions = |step| {
            let seq = padded_length(order.longest_in_step(step), self.config.context_length);
            (per_step * seq) as f64
        };
        let used: usize = (0..steps).map(|step| order.tokens_in_step(step)).sum();
        let all: f64 = (0..steps).map(positions).sum();
        Some((all - used as f64) / all)
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
            Rows::Windows {
                windows,
                masked: Some(masked),
                ..
            } => masked.share() * windows.targets_per_epoch() as f64,
            Rows::Windows { windows, .. } => windows.targets_per_epoch() as f64,
            Rows::Pairs {
                samples,
                is_first_trained: true,
                ..
            } => {
                let first = (0..samples.len()).step_by(2);
                first.map(|index| samples.trained_in(index)).sum::<usize>() as f64
            }
            Rows::Samples { samples, .. } | Rows::Pairs { samples, .. } => {
                samples.trained_count() as f64
            }
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
        let sequences = self.sequences(step, micro);
        let (tokens, windows, masked) = match &self.rows {
            Rows::Samples { samples, order } => {
                let rows: Vec<Vec<usize>> = sequences.map(|sequence| order.row(sequence)).collect();
                let seq = padded_length(order.longest_in_step(step), context_length);
                return samples.rows(&rows, seq, padding_id);
            }
            Rows::Pairs { samples, order, .. } => {
                let pairs = sequences.flat_map(|sequence| order.row(sequence));
                let rows: Vec<Vec<usize>> = pairs
                    .flat_map(|pair| [vec![2 * pair], vec![2 * pair + 1]])
                    .collect();
                let seq = padded_length(order.longest_in_step(step), context_length);
                return samples.rows(&rows, seq, padding_id);
            }
            Rows::Windows {
                tokens,
                windows,
                masked,
            } => (tokens, windows, masked),
        };
        let mut batch = match masked {
            Some(_) => MaskedTokens::empty_batch(batch_size, context_length),
            None => TokenBatch::with_capacity(batch_size, context_length),
        };
        let mut ids = Vec::with_capacity(context_length + 1);
        for sequence in sequences {
            ids.clear();
            tokens.read(windows.range(sequence), &mut ids)?;
            match masked {
                Some(masked) => {
                    let rows = MaskedRows::Training;
                    masked.push_row(&mut batch, &ids, rows, sequence, padding_id);
                }
                None => batch.push_row(&ids, padding_id),
            }
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
