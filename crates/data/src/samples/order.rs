//! The order of samples: a pure function of (seed, samples per step, sequence index).

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

use super::Samples;
use crate::permutation::Permutation;
use crate::rng::{CounterRng, stream};

/// Number of steps whose samples are sorted by length together. More steps mean less padding; fewer mean that samples
/// of similar length meet in other steps in each epoch.
const BUCKET_STEPS: usize = 32;

/// The order in which samples are trained on. Each occurs once per epoch, beside others of similar length.
///
/// An epoch is a random permutation, cut into buckets, each sorted by length and cut into groups of a whole step; the
/// groups of all buckets are then shuffled. Steps do not end with an epoch, so an epoch starts with the samples that
/// complete the last step of the one before. The first step of all has the longest sample, in its first micro-batch:
/// no later batch takes more memory.
#[derive(Debug, Clone)]
pub(crate) struct SampleOrder {
    /// The length of each sample's row.
    lengths: Arc<[u32]>,
    per_step: usize,
    seed: u64,
    /// The last even and the last odd epoch that were computed: a step may be part of two.
    recent: Arc<Mutex<[Option<EpochOrder>; 2]>>,
}

/// All samples in the order of an epoch.
#[derive(Debug)]
struct EpochOrder {
    epoch: u64,
    indices: Vec<u32>,
}

impl SampleOrder {
    /// The order of `samples`, of which there is at least one, with `per_step` of them in a step.
    pub(crate) fn new(samples: &Samples, per_step: usize, seed: u64) -> Self {
        let lengths = (0..samples.len()).map(|index| samples.row_length(index) as u32);
        Self::of_lengths(lengths.collect(), per_step, seed)
    }

    /// The order of the pairs in `samples`, of which there is at least one: samples 2i and 2i + 1 are pair i. `per_step`
    /// is a number of pairs.
    pub(crate) fn of_pairs(samples: &Samples, per_step: usize, seed: u64) -> Self {
        let row_length = |index| samples.row_length(index) as u32;
        let lengths =
            (0..samples.len() / 2).map(|pair| row_length(2 * pair).max(row_length(2 * pair + 1)));
        Self::of_lengths(lengths.collect(), per_step, seed)
    }

    fn of_lengths(lengths: Arc<[u32]>, per_step: usize, seed: u64) -> Self {
        Self {
            lengths,
            per_step: per_step.max(1),
            seed,
            recent: Arc::default(),
        }
    }

    /// Returns the index of the sample of sequence `sequence`.
    pub(crate) fn at(&self, sequence: u64) -> usize {
        let count = self.lengths.len() as u64;
        let (epoch, position) = (sequence / count, sequence % count);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = &mut recent[(epoch % 2) as usize];
        if let Some(order) = recent
            && order.epoch == epoch
        {
            return order.indices[position as usize] as usize;
        }
        let indices = self.epoch(epoch);
        let index = indices[position as usize] as usize;
        *recent = Some(EpochOrder { epoch, indices });
        index
    }

    /// The longest row of step `step`.
    pub(crate) fn longest_in_step(&self, step: u64) -> usize {
        let first = step * self.per_step as u64;
        let sequences = first..first + self.per_step as u64;
        let lengths = sequences.map(|sequence| self.lengths[self.at(sequence)] as usize);
        lengths.max().unwrap_or(0)
    }

    /// All samples in the order of `epoch`.
    fn epoch(&self, epoch: u64) -> Vec<u32> {
        let (count, per_step) = (self.lengths.len(), self.per_step);
        let key = |stream| CounterRng::with_stream(self.seed, stream).at(epoch);
        let permutation = Permutation::new(key(stream::SAMPLE_EPOCHS), count as u64);
        let mut order: Vec<u32> = (0..count as u64)
            .map(|position| permutation.at(position) as u32)
            .collect();
        let by_length = |index: &u32| Reverse(self.lengths[*index as usize]);

        let started = (epoch * count as u64 % per_step as u64) as usize;
        let missing = ((per_step - started) % per_step).min(count);
        let (first, rest) = order.split_at_mut(missing);
        first.sort_by_key(by_length);
        // The last bucket has the remainder too, so that its longest samples fill a whole step.
        let buckets = (rest.len() / (BUCKET_STEPS * per_step)).max(1);
        let mut left = &mut *rest;
        for bucket in 0..buckets {
            let size = if bucket + 1 == buckets {
                left.len()
            } else {
                BUCKET_STEPS * per_step
            };
            let (samples, others) = std::mem::take(&mut left).split_at_mut(size);
            samples.sort_by_key(by_length);
            left = others;
        }

        let groups = rest.len() / per_step;
        let shuffled = Permutation::new(key(stream::SAMPLE_GROUPS), groups as u64);
        let mut sequence: Vec<usize> = (0..groups as u64)
            .map(|position| shuffled.at(position) as usize)
            .collect();
        if epoch == 0 {
            let longest = |group: &usize| self.lengths[rest[group * per_step] as usize];
            // The first of the longest ones.
            let found = (0..groups).rev().max_by_key(|at| longest(&sequence[*at]));
            if let Some(found) = found {
                sequence.swap(0, found);
            }
        }
        let in_groups = sequence
            .iter()
            .flat_map(|group| &rest[group * per_step..(group + 1) * per_step]);
        let all = first.iter().chain(in_groups);
        all.chain(&rest[groups * per_step..]).copied().collect()
    }
}
