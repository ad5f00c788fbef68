//! Count-based baselines: the losses that a model has to beat.

use std::collections::HashMap;

use crate::error::DataError;
use crate::tokens::Tokens;

/// Maximum number of training tokens to count.
const MAX_COUNTED_TOKENS: usize = 10_000_000;
const CHUNK_TOKENS: usize = 1 << 16;

/// Cross-entropies of the validation split in nats per token, from counts of the training split.
///
/// # Example
///
/// ```
/// use nextword_data::{Baselines, Tokens};
///
/// let tokens = Tokens::from_ids([0, 1, 2, 3].repeat(50));
/// let losses = Baselines::compute(&tokens, &tokens, 4)?; // nats per token
/// assert!((losses.uniform - 4f64.ln()).abs() < 1e-12);
/// assert!(losses.bigram < 0.1); // the next token is certain once the last one is known
/// # Ok::<(), nextword_data::DataError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baselines {
    /// Uniform distribution: `ln V`.
    pub uniform: f64,
    /// Unigram frequencies with add-one smoothing: `p(b) = (c(b) + 1) / (N + V)`.
    pub unigram: f64,
    /// Bigram frequencies, interpolated with the unigram by Witten-Bell smoothing (1991):
    /// `p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a))`, where `t(a)` is the number of distinct
    /// tokens that follow `a`.
    pub bigram: f64,
    /// Number of predicted validation tokens: all except the first.
    pub targets: u64,
}

impl Baselines {
    /// Counts `train` (its first 10 million tokens) and predicts `validation`, ignoring document
    /// boundaries in both.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if `validation` has fewer than 2 tokens; [`DataError::Shard`] for a
    /// damaged token file.
    pub fn compute(
        train: &Tokens,
        validation: &Tokens,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        if validation.len() < 2 {
            return Err(DataError::TooShort {
                split: "validation",
                available: validation.len(),
                length: 1,
            });
        }
        let counts = Counts::from_tokens(train, vocab_size)?;
        let (mut unigram, mut bigram, mut targets) = (0.0, 0.0, 0u64);
        for_each_pair(validation, validation.len(), |previous, token| {
            if let Some(previous) = previous {
                unigram -= counts.unigram(token).ln();
                bigram -= counts.bigram(previous, token).ln();
                targets += 1;
            }
        })?;
        let n = targets as f64;
        Ok(Self {
            uniform: (vocab_size.max(1) as f64).ln(),
            unigram: unigram / n,
            bigram: bigram / n,
            targets,
        })
    }
}

struct Counts {
    total: u64,
    tokens: Vec<u64>,
    pairs: HashMap<(u32, u32), u64>,
    /// For each token: how many tokens follow it, and how many of them are distinct.
    after: Vec<(u64, u64)>,
}

impl Counts {
    fn from_tokens(train: &Tokens, vocab_size: usize) -> Result<Self, DataError> {
        let mut counts = Self {
            total: 0,
            tokens: vec![0; vocab_size],
            pairs: HashMap::new(),
            after: vec![(0, 0); vocab_size],
        };
        for_each_pair(
            train,
            train.len().min(MAX_COUNTED_TOKENS),
            |previous, token| {
                counts.total += 1;
                if let Some(count) = counts.tokens.get_mut(token as usize) {
                    *count += 1;
                }
                let Some(previous) = previous else { return };
                let pair = counts.pairs.entry((previous, token)).or_insert(0);
                *pair += 1;
                if let Some((count, distinct)) = counts.after.get_mut(previous as usize) {
                    *count += 1;
                    *distinct += u64::from(*pair == 1);
                }
            },
        )?;
        Ok(counts)
    }

    fn unigram(&self, token: u32) -> f64 {
        let count = self.tokens.get(token as usize).copied().unwrap_or(0);
        (count + 1) as f64 / (self.total + self.tokens.len() as u64) as f64
    }

    fn bigram(&self, previous: u32, token: u32) -> f64 {
        let (count, distinct) = self.after.get(previous as usize).copied().unwrap_or((0, 0));
        let pair = self.pairs.get(&(previous, token)).copied().unwrap_or(0);
        let unigram = self.unigram(token);
        if count == 0 {
            return unigram;
        }
        (pair as f64 + distinct as f64 * unigram) / (count + distinct) as f64
    }
}

/// Calls `visit` with each of the first `count` tokens and its predecessor.
fn for_each_pair(
    tokens: &Tokens,
    count: usize,
    mut visit: impl FnMut(Option<u32>, u32),
) -> Result<(), DataError> {
    let (mut previous, mut ids) = (None, Vec::new());
    for start in (0..count).step_by(CHUNK_TOKENS) {
        ids.clear();
        tokens.read(start..(start + CHUNK_TOKENS).min(count), &mut ids)?;
        for &id in &ids {
            visit(previous, id);
            previous = Some(id);
        }
    }
    Ok(())
}
