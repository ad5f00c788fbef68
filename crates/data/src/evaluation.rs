//! Evaluation windows: they cover a split and predict each target once.

use std::ops::Range;

use crate::batch::{IGNORE, TokenBatch, check_size};
use crate::error::DataError;
use crate::masked::{MaskedRows, MaskedTokens};
use crate::samples::{Samples, check_samples};
use crate::tokens::Tokens;
use crate::window::{DocumentWindows, Packing, without_samples};

/// Consecutive windows over a split, in which each token after the first is a target exactly once
/// (packed), or each token of a document after its first (documents).
///
/// The first targets of each window are predicted from little context. This is common practice and
/// gives a slightly higher loss than overlapping windows.
///
/// # Example
///
/// ```
/// use nextword_data::{EvalWindows, IGNORE, Packing, Tokens};
///
/// let tokens = Tokens::from_ids(vec![5, 6, 7, 8, 9, 10]);
/// let windows = EvalWindows::new(tokens, 4, Packing::Packed, 0)?;
/// let batch = windows.batch(0..2)?;
/// assert_eq!(batch.inputs, [5, 6, 7, 8, /* second row */ 9, 0, 0, 0]);
/// assert_eq!(batch.targets, [6, 7, 8, 9, /* second row */ 10, IGNORE, IGNORE, IGNORE]);
/// assert_eq!(batch.target_count(), 5); // every token but the first
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct EvalWindows {
    tokens: Tokens,
    documents: Option<DocumentWindows>,
    /// Samples, each of which is a window, in place of tokens.
    samples: Option<Samples>,
    /// What masks tokens, which then are the targets.
    masked: Option<MaskedTokens>,
    /// Whether windows include as much left context as fits.
    has_left_context: bool,
    context_length: usize,
    padding_id: u32,
    /// Number of windows in the split.
    window_count: usize,
    /// Number of windows to evaluate.
    used: usize,
}

impl EvalWindows {
    /// Creates the windows of `tokens`; `padding_id` ([`crate::SpecialTokens::padding_id`]) pads
    /// short rows.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if there are fewer than 2 tokens. [`DataError::Config`] for
    /// a `context_length` of 0 or above 2^28, and for documents without targets.
    pub fn new(
        tokens: Tokens,
        context_length: usize,
        packing: Packing,
        padding_id: u32,
    ) -> Result<Self, DataError> {
        if context_length == 0 {
            return Err(DataError::config(
                "windows of 0 tokens are too short; hint: use 1 or more",
            ));
        }
        check_size(1, context_length)?;
        if tokens.len() < 2 {
            return Err(DataError::TooShort {
                split: "validation",
                available: tokens.len(),
                length: 1,
            });
        }
        let documents = match packing {
            Packing::Packed => None,
            Packing::Documents => {
                Some(DocumentWindows::new(&tokens, "validation", context_length)?)
            }
            Packing::Samples => return Err(without_samples()),
        };
        let packed = (tokens.len() - 1).div_ceil(context_length);
        let window_count = documents.as_ref().map_or(packed, DocumentWindows::count);
        Ok(Self {
            tokens,
            documents,
            samples: None,
            masked: None,
            has_left_context: false,
            context_length,
            padding_id,
            window_count,
            used: window_count,
        })
    }

    /// Creates the windows with which lm-evaluation-harness scores documents (there: rolling windows). Every
    /// token of a document after its first `prefix` (at least one) is a target once. The first window begins with
    /// the whole prefix, as far as it fits, and the last window of a document longer than the context is as long as
    /// the others: it repeats tokens before its targets.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// ```
    /// use nextword_data::{EvalWindows, IGNORE, Tokens};
    ///
    /// let tokens = Tokens::from_documents([vec![1, 5, 6, 7, 8, 9]]);
    /// let windows = EvalWindows::rolling(tokens, 4, 1, 0)?;
    /// let batch = windows.batch(0..2)?;
    /// assert_eq!(batch.inputs, [1, 5, 6, 7, /* second row */ 5, 6, 7, 8]);
    /// assert_eq!(batch.targets, [5, 6, 7, 8, /* second row */ IGNORE, IGNORE, IGNORE, 9]);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn rolling(
        tokens: Tokens,
        context_length: usize,
        prefix: usize,
        padding_id: u32,
    ) -> Result<Self, DataError> {
        let windows = Self::new(tokens, context_length, Packing::Packed, padding_id)?;
        let documents =
            DocumentWindows::after_prefix(&windows.tokens, "validation", context_length, prefix)?;
        let count = documents.count();
        Ok(Self {
            documents: Some(documents),
            has_left_context: true,
            window_count: count,
            used: count,
            ..windows
        })
    }

    /// Makes each of `samples` a window: its trained tokens are the targets.
    ///
    /// # Errors
    /// [`DataError::Config`] without samples, and for a sample with more than `context_length` inputs.
    ///
    /// ```
    /// use nextword_data::{EvalWindows, SamplesBuilder};
    ///
    /// let mut builder = SamplesBuilder::default();
    /// builder.push(&[1, 5, 6, 2], &[2..4])?;
    /// let windows = EvalWindows::from_samples(builder.finish(), 32, 0)?;
    /// assert_eq!(windows.batch(0..1)?.target_count(), 2);
    /// # Ok::<(), nextword_data::DataError>(())
    /// ```
    pub fn from_samples(
        samples: Samples,
        context_length: usize,
        padding_id: u32,
    ) -> Result<Self, DataError> {
        check_samples(&samples, "validation", context_length)?;
        let count = samples.len();
        Ok(Self {
            tokens: Tokens::default(),
            documents: None,
            samples: Some(samples),
            masked: None,
            has_left_context: false,
            context_length,
            padding_id,
            window_count: count,
            used: count,
        })
    }

    /// The same windows with masked tokens as targets, for encoders: always the same ones in a window. Has no effect on
    /// samples.
    #[must_use]
    pub fn with_masked_tokens(self, tokens: MaskedTokens) -> Self {
        let masked = Some(tokens);
        Self { masked, ..self }
    }

    /// Limits evaluation to `windows` windows, spread evenly over the split.
    pub fn limit(mut self, windows: usize) -> Self {
        self.used = windows.clamp(1, self.window_count);
        self
    }

    /// Tokens of a row.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Always `false`: there is at least one window.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Returns the windows `range` (within `0..len()`) as rows of one batch.
    ///
    /// # Errors
    /// [`DataError::Shard`] if the token file contains an id outside its vocabulary;
    /// [`DataError::Config`] for a batch of more than 2^28 tokens.
    pub fn batch(&self, range: Range<usize>) -> Result<TokenBatch, DataError> {
        if let Some(samples) = &self.samples {
            let indices: Vec<usize> = range.map(|index| self.spread(index)).collect();
            return samples.batch(&indices, self.context_length, self.padding_id);
        }
        check_size(range.len(), self.context_length)?;
        let mut batch = match self.masked {
            Some(_) => MaskedTokens::empty_batch(range.len(), self.context_length),
            None => TokenBatch::with_capacity(range.len(), self.context_length),
        };
        let mut ids = Vec::with_capacity(self.context_length + 1);
        for index in range {
            ids.clear();
            let (window, repeated) = self.window(index);
            self.tokens.read(window, &mut ids)?;
            if let Some(masked) = &self.masked {
                let (rows, number) = (MaskedRows::Validation, self.spread(index) as u64);
                masked.push_row(&mut batch, &ids, rows, number, self.padding_id);
                continue;
            }
            batch.push_row(&ids, self.padding_id);
            let row = batch.targets.len() - self.context_length;
            batch.targets[row..][..repeated].fill(IGNORE);
        }
        Ok(batch)
    }

    /// Iterates over all windows in batches of `batch_size` rows; the last batch may be smaller.
    pub fn batches(
        &self,
        batch_size: usize,
    ) -> impl Iterator<Item = Result<TokenBatch, DataError>> + '_ {
        let size = batch_size.max(1);
        (0..self.used)
            .step_by(size)
            .map(move |first| self.batch(first..(first + size).min(self.used)))
    }

    /// The tokens of a window, and the number of targets at its start that count in other windows.
    fn window(&self, index: usize) -> (Range<usize>, usize) {
        let index = self.spread(index);
        match &self.documents {
            Some(documents) if self.has_left_context => documents.range_with_left_context(index),
            Some(documents) => (documents.range(index), 0),
            None => {
                let start = index * self.context_length;
                let end = (start + self.context_length + 1).min(self.tokens.len());
                (start..end, 0)
            }
        }
    }

    /// The window that is evaluated as number `index`: those that are used are spread over the split.
    fn spread(&self, index: usize) -> usize {
        (index as u128 * self.window_count as u128 / self.used as u128) as usize
    }
}
