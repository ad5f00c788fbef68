//! What the model is fed: rows of ids and the ids that should follow them.

use crate::error::DataError;

/// The target where no loss is taken: padding, and what a mask hides.
pub const IGNORE: u32 = u32::MAX;

/// `batch` sequences of `seq` tokens with their targets, both row by row.
///
/// `targets[r * seq + t]` is the token that follows `inputs[r * seq + t]`, or [`IGNORE`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenBatch {
    /// Number of sequences (rows).
    pub batch: usize,
    /// Tokens in each sequence.
    pub seq: usize,
    /// Ids that the model reads, `[batch, seq]`; padding holds the padding id.
    pub inputs: Vec<u32>,
    /// Ids that the model should predict, `[batch, seq]`; [`IGNORE`] where no loss is taken.
    pub targets: Vec<u32>,
}

/// The most tokens in one batch: 2 GiB with their targets.
const MAX_TOKENS: usize = 1 << 28;

/// An error for batches that no machine has memory for.
pub(crate) fn check_size(batch_size: usize, context_length: usize) -> Result<(), DataError> {
    match batch_size.checked_mul(context_length) {
        Some(tokens) if tokens <= MAX_TOKENS => Ok(()),
        _ => Err(DataError::config(format!(
            "batch_size = {batch_size} with context_length = {context_length} is more than {MAX_TOKENS} tokens in one \
             batch; hint: make one of them smaller (for a large step set accumulation)"
        ))),
    }
}

impl TokenBatch {
    /// Number of targets that count in the loss.
    pub fn target_count(&self) -> usize {
        self.targets
            .iter()
            .filter(|&&target| target != IGNORE)
            .count()
    }

    /// An empty batch with room for `rows` rows of `seq` tokens.
    pub(crate) fn with_room(rows: usize, seq: usize) -> Self {
        Self {
            batch: 0,
            seq,
            inputs: Vec::with_capacity(rows * seq),
            targets: Vec::with_capacity(rows * seq),
        }
    }

    /// Adds one row: `ids` is the inputs and, shifted by one, the targets; the rest is padding.
    pub(crate) fn push_row(&mut self, ids: &[u32], padding: u32) {
        let used = ids.len().saturating_sub(1).min(self.seq);
        self.inputs.extend_from_slice(&ids[..used]);
        self.targets.extend(ids.iter().skip(1).take(used));
        self.batch += 1;
        self.inputs.resize(self.batch * self.seq, padding);
        self.targets.resize(self.batch * self.seq, IGNORE);
    }
}
