//! What counting alone predicts: the losses that a model has to beat.

use std::collections::HashMap;

use crate::error::DataError;
use crate::tokens::Tokens;

/// Counts are taken from at most this many training tokens.
const MAX_COUNTED: usize = 10_000_000;
const CHUNK: usize = 1 << 16;

/// Cross-entropies of a validation split in nats a token, under counts of the training split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baselines {
    /// Every token equally likely: `ln V`.
    pub uniform: f64,
    /// Token frequencies, with one added to each count: `p(b) = (c(b) + 1) / (N + V)`.
    pub unigram: f64,
    /// Frequencies after the token before, mixed with the unigram by Witten and Bell's rule (1991):
    /// `p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a))`, where `t(a)` is the number of different
    /// tokens that were seen after `a`.
    pub bigram: f64,
    /// Validation tokens that were predicted: all but the first.
    pub targets: u64,
}

impl Baselines {
    /// Counts `train` (its first 10 million tokens) and predicts `validation`; both as one stream
    /// across documents.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if `validation` has fewer than 2 tokens; [`DataError::Shard`] for a
    /// damaged token file.
    pub fn measure(
        train: &Tokens,
        validation: &Tokens,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        if validation.len() < 2 {
            return Err(DataError::TooShort {
                split: "validation",
                have: validation.len(),
                context_length: 1,
            });
        }
        let counts = Counts::of(train, vocab_size)?;
        let (mut unigram, mut bigram, mut targets) = (0.0, 0.0, 0u64);
        for_each_pair(validation, validation.len(), |before, token| {
            if let Some(before) = before {
                unigram -= counts.unigram(token).ln();
                bigram -= counts.bigram(before, token).ln();
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
    /// For each token: how often it had a token after it, and how many different ones.
    after: Vec<(u64, u64)>,
}

impl Counts {
    fn of(train: &Tokens, vocab_size: usize) -> Result<Self, DataError> {
        let mut counts = Self {
            total: 0,
            tokens: vec![0; vocab_size],
            pairs: HashMap::new(),
            after: vec![(0, 0); vocab_size],
        };
        for_each_pair(train, train.len().min(MAX_COUNTED), |before, token| {
            counts.total += 1;
            if let Some(count) = counts.tokens.get_mut(token as usize) {
                *count += 1;
            }
            let Some(before) = before else { return };
            let pair = counts.pairs.entry((before, token)).or_insert(0);
            *pair += 1;
            if let Some((count, different)) = counts.after.get_mut(before as usize) {
                *count += 1;
                *different += u64::from(*pair == 1);
            }
        })?;
        Ok(counts)
    }

    fn unigram(&self, token: u32) -> f64 {
        let count = self.tokens.get(token as usize).copied().unwrap_or(0);
        (count + 1) as f64 / (self.total + self.tokens.len() as u64) as f64
    }

    fn bigram(&self, before: u32, token: u32) -> f64 {
        let (count, different) = self.after.get(before as usize).copied().unwrap_or((0, 0));
        let pair = self.pairs.get(&(before, token)).copied().unwrap_or(0);
        let unigram = self.unigram(token);
        if count == 0 {
            return unigram;
        }
        (pair as f64 + different as f64 * unigram) / (count + different) as f64
    }
}

/// Calls `see` with each of the first `count` tokens and the one before it.
fn for_each_pair(
    tokens: &Tokens,
    count: usize,
    mut see: impl FnMut(Option<u32>, u32),
) -> Result<(), DataError> {
    let (mut before, mut ids) = (None, Vec::new());
    for start in (0..count).step_by(CHUNK) {
        ids.clear();
        tokens.read(start..(start + CHUNK).min(count), &mut ids)?;
        for &id in &ids {
            see(before, id);
            before = Some(id);
        }
    }
    Ok(())
}
