//! Model inputs: rows of token ids and their target ids.

pub use nextword_base::IGNORE;

use crate::batch_mask::BatchMask;
use crate::error::DataError;

/// `batch` sequences of `seq` tokens with their targets, both row-major.
///
/// `targets[r * seq + t]` is the token that follows `inputs[r * seq + t]`, or [`IGNORE`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenBatch {
    /// Number of sequences (rows).
    pub batch: usize,
    /// Tokens in each sequence.
    pub seq: usize,
    /// Input ids, `[batch, seq]`; padding positions contain the padding id.
    pub inputs: Vec<u32>,
    /// Target ids, `[batch, seq]`; [`IGNORE`] at positions without loss.
    pub targets: Vec<u32>,
    /// Which tokens of a row attend to each other.
    pub mask: BatchMask,
    /// Input of the encoder, for encoder-decoder models.
    pub source: Option<SourceBatch>,
}

/// The encoder's input for a batch of an encoder-decoder model: as many rows as the batch has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceBatch {
    /// Tokens in each row.
    pub seq: usize,
    /// Input ids, `[batch, seq]`; padding positions contain the padding id.
    pub inputs: Vec<u32>,
    /// Number of tokens before the padding, per row.
    pub lengths: Vec<usize>,
}

/// Maximum number of tokens in one batch (2 GiB including targets).
const MAX_BATCH_TOKENS: usize = 1 << 28;

/// Returns an error for batches that are too large for memory.
pub(crate) fn check_size(batch_size: usize, context_length: usize) -> Result<(), DataError> {
    match batch_size.checked_mul(context_length) {
        Some(tokens) if tokens <= MAX_BATCH_TOKENS => Ok(()),
        _ => Err(DataError::config(format!(
            "batch_size = {batch_size} with sequences of {context_length} tokens exceeds {MAX_BATCH_TOKENS} tokens per \
             batch; hint: reduce batch_size (accumulation gives the same effective batch) or train.sequence_length"
        ))),
    }
}

impl TokenBatch {
    /// Number of targets that contribute to the loss.
    pub fn target_count(&self) -> usize {
        self.targets
            .iter()
            .filter(|&&target| target != IGNORE)
            .count()
    }

    /// Creates an empty batch with capacity for `rows` rows of `seq` tokens.
    pub(crate) fn with_capacity(rows: usize, seq: usize) -> Self {
        Self {
            batch: 0,
            seq,
            inputs: Vec::with_capacity(rows * seq),
            targets: Vec::with_capacity(rows * seq),
            ..Self::default()
        }
    }

    /// The first `seq` tokens of the rows `rows`. Rows of an encoder's input stay whole.
    ///
    /// # Panics
    /// If there is no such row, or rows are shorter.
    #[must_use]
    pub fn select(&self, rows: &[usize], seq: usize) -> Self {
        let part = |ids: &[u32]| -> Vec<u32> {
            let row = |row: &usize| &ids[row * self.seq..][..seq];
            rows.iter().flat_map(row).copied().collect()
        };
        Self {
            batch: rows.len(),
            seq,
            inputs: part(&self.inputs),
            targets: part(&self.targets),
            mask: self.mask.select(rows, seq),
            source: self.source.as_ref().map(|source| source.select(rows)),
        }
    }

    /// Appends one row. `ids` are the inputs and, shifted by one, the targets; the rest is padded.
    pub(crate) fn push_row(&mut self, ids: &[u32], padding_id: u32) {
        self.push_tokens(&ids[..ids.len().min(self.seq + 1)]);
        self.end_row(padding_id);
    }

    /// Appends tokens to the row that [`end_row`](Self::end_row) completes: inputs and, shifted by one, targets.
    pub(crate) fn push_tokens(&mut self, ids: &[u32]) {
        let used = ids.len().saturating_sub(1);
        self.inputs.extend_from_slice(&ids[..used]);
        self.targets.extend(ids.iter().skip(1));
    }

    /// Completes a row: the rest is padded.
    pub(crate) fn end_row(&mut self, padding_id: u32) {
        self.batch += 1;
        self.inputs.resize(self.batch * self.seq, padding_id);
        self.targets.resize(self.batch * self.seq, IGNORE);
    }
}

impl SourceBatch {
    /// The rows `rows`.
    fn select(&self, rows: &[usize]) -> Self {
        let inputs = rows
            .iter()
            .flat_map(|row| &self.inputs[row * self.seq..][..self.seq]);
        Self {
            seq: self.seq,
            inputs: inputs.copied().collect(),
            lengths: rows.iter().map(|row| self.lengths[*row]).collect(),
        }
    }
}
