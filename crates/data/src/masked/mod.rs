//! Masked tokens: what an encoder learns to predict.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod words;

use std::sync::Arc;

use self::words::Words;
use crate::batch::{IGNORE, TokenBatch};
use crate::batch_mask::BatchMask;
use crate::error::DataError;
use crate::masked_config::MaskedConfig;
use crate::rng::{CounterRng, stream};
use crate::tokenizer::{Tokenizer, special_token};

/// Draws the tokens that are to be predicted, and what stands in their place, as in BERT (Devlin et al. 2018, arXiv
/// 1810.04805, section 3.1 and appendix A.1).
///
/// Of each row, `rate` of the ordinary tokens are targets (rounded, at least one). The mask token replaces a share of
/// them, a random ordinary token another share, and the rest stays as it is. Special tokens are never targets. All of
/// this is a pure function of the seed, the row's number in the stream, and the position.
#[derive(Debug, Clone)]
pub struct MaskedTokens {
    config: MaskedConfig,
    mask_id: u32,
    seed: u64,
    /// The ids that are not special tokens, ascending.
    ordinary: Arc<[u32]>,
    words: Option<Arc<Words>>,
}

/// Which rows a random stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaskedRows {
    /// Rows of training, which differ in each epoch.
    Training,
    /// Rows of validation: always the same.
    Validation,
}

/// Random numbers of a position.
const DRAWS: u64 = 3;

impl MaskedTokens {
    /// Masks ordinary tokens of `tokenizer` by `mask_id`.
    ///
    /// # Errors
    /// [`DataError::Config`] for invalid shares, or if the tokenizer has no ordinary tokens.
    pub fn new(
        config: MaskedConfig,
        tokenizer: &dyn Tokenizer,
        mask_id: u32,
        seed: u64,
    ) -> Result<Self, DataError> {
        config.validate()?;
        let texts = tokenizer.special_texts();
        let special: Vec<u32> = texts
            .iter()
            .filter_map(|name| special_token(tokenizer, name))
            .collect();
        let is_ordinary = |id: &u32| {
            *id != mask_id && !special.contains(id) && tokenizer.id_to_token(*id).is_some()
        };
        let ordinary: Arc<[u32]> = (0..tokenizer.vocab_size() as u32)
            .filter(is_ordinary)
            .collect();
        if ordinary.is_empty() {
            return Err(DataError::config(
                "the tokenizer has special tokens only, so that none can be masked; hint: use another one",
            ));
        }
        let words = config.whole_words.then(|| Arc::new(Words::new(tokenizer)));
        Ok(Self {
            config,
            mask_id,
            seed,
            ordinary,
            words,
        })
    }

    /// The share of ordinary tokens that are targets.
    pub(crate) fn share(&self) -> f64 {
        self.config.rate
    }

    /// The number of targets in a row of `ordinary` ordinary tokens.
    fn target_count(&self, ordinary: usize) -> usize {
        let count = (self.config.rate * ordinary as f64).round() as usize;
        count.max(1).min(ordinary)
    }

    /// An empty batch of rows of `seq` tokens.
    pub(crate) fn empty_batch(rows: usize, seq: usize) -> TokenBatch {
        TokenBatch {
            mask: BatchMask::Bidirectional(Vec::with_capacity(rows)),
            ..TokenBatch::with_capacity(rows, seq)
        }
    }

    /// Appends a row of the first tokens of `ids`, as many as fit; the rest is padded. `number` is that of the row in
    /// the stream.
    pub(crate) fn push_row(
        &self,
        batch: &mut TokenBatch,
        ids: &[u32],
        rows: MaskedRows,
        number: u64,
        padding_id: u32,
    ) {
        let used = &ids[..ids.len().min(batch.seq)];
        let start = batch.inputs.len();
        batch.batch += 1;
        batch.inputs.extend_from_slice(used);
        batch.inputs.resize(batch.batch * batch.seq, padding_id);
        batch.targets.resize(batch.batch * batch.seq, IGNORE);
        if let BatchMask::Bidirectional(lengths) = &mut batch.mask {
            lengths.push(used.len());
        }
        let of_rows = match rows {
            MaskedRows::Training => stream::MASKED,
            MaskedRows::Validation => stream::MASKED_VALIDATION,
        };
        let rng = CounterRng::with_stream(self.seed, of_rows).stream(number);
        for position in self.positions(used, rng) {
            let at = start + position;
            batch.targets[at] = used[position];
            batch.inputs[at] = self.replacement(used[position], rng, position);
        }
    }

    fn is_ordinary(&self, id: u32) -> bool {
        self.ordinary.binary_search(&id).is_ok()
    }

    /// The positions of the targets.
    fn positions(&self, ids: &[u32], rng: CounterRng) -> Vec<usize> {
        let mut words: Vec<Vec<usize>> = Vec::new();
        let mut count = 0;
        for (position, id) in ids.iter().enumerate() {
            if !self.is_ordinary(*id) {
                continue;
            }
            count += 1;
            let continues = self
                .words
                .as_ref()
                .filter(|words| position > 0 && words.continues(ids[position - 1], *id));
            match words.last_mut() {
                Some(word) if continues.is_some() && word.last() == Some(&(position - 1)) => {
                    word.push(position);
                }
                _ => words.push(vec![position]),
            }
        }
        words.sort_by_key(|word| (rng.at(DRAWS * word[0] as u64), word[0]));
        let wanted = self.target_count(count);
        let mut positions: Vec<usize> = Vec::with_capacity(wanted);
        for word in words {
            // A first word that is too long is better than no target.
            if positions.is_empty() || positions.len() + word.len() <= wanted {
                positions.extend(word);
            }
        }
        positions
    }

    /// The input in place of a target.
    fn replacement(&self, id: u32, rng: CounterRng, position: usize) -> u32 {
        let counter = DRAWS * position as u64;
        let share = rng.uniform(counter + 1);
        let MaskedConfig { mask, random, .. } = self.config;
        if share < mask {
            self.mask_id
        } else if share < mask + random {
            self.ordinary[rng.below(counter + 2, self.ordinary.len() as u64) as usize]
        } else {
            id
        }
    }
}
