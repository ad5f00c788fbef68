//! The order of samples: a pure function of (seed, rows per step, sequence index).

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

use super::Samples;
use super::packing::PackedRows;
use crate::permutation::Permutation;
use crate::rng::{CounterRng, stream};

/// Number of steps whose samples are sorted by length together. More steps mean less padding; fewer mean that samples
/// of similar length meet in other steps in each epoch.
const BUCKET_STEPS: usize = 32;

/// The order in which samples are trained on. Each occurs once per epoch.
///
/// A sequence is a row of one sample, or of several where they are packed. An epoch is a random permutation of the rows,
/// cut into buckets, each sorted by length and cut into groups of a whole step; the groups of all buckets are then
/// shuffled. Steps do not end with an epoch, so an epoch starts with the rows that complete the last step of the one
/// before. The first step of all has the longest row, in its first micro-batch: no later batch takes more memory.
///
/// Packed rows are made of all samples of an epoch: in another epoch, a row has other samples of the same lengths.
#[derive(Debug, Clone)]
pub(crate) struct SampleOrder {
    /// The number of inputs of each sample.
    lengths: Arc<[u32]>,
    /// Tokens in a row of several samples; `None` for rows of one.
    capacity: Option<u32>,
    rows_per_epoch: usize,
    per_step: usize,
    seed: u64,
    /// The last even and the last odd epoch that were computed: a step may be part of two.
    recent: Arc<Mutex<[Option<Arc<EpochOrder>>; 2]>>,
}

/// All rows in the order of an epoch.
#[derive(Debug)]
struct EpochOrder {
    epoch: u64,
    rows: Vec<u32>,
    /// The samples of rows, if they are packed.
    packed: Option<PackedRows>,
}

impl SampleOrder {
    /// The order of `samples`, of which there is at least one, with `per_step` rows in a step. Rows have several
    /// samples if they have a `capacity`, which is enough for each sample.
    pub(crate) fn new(
        samples: &Samples,
        capacity: Option<usize>,
        per_step: usize,
        seed: u64,
    ) -> Self {
        let lengths = (0..samples.len()).map(|index| samples.row_length(index) as u32);
        let mut order = Self::of_lengths(lengths.collect(), per_step, seed);
        order.capacity = capacity.map(|tokens| tokens as u32);
        if let Some(packed) = order.pack(0) {
            order.rows_per_epoch = packed.lengths().len(); // The same in each epoch.
        }
        order
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
            rows_per_epoch: lengths.len(),
            lengths,
            capacity: None,
            per_step: per_step.max(1),
            seed,
            recent: Arc::default(),
        }
    }

    /// Number of rows in an epoch.
    pub(crate) fn rows_per_epoch(&self) -> usize {
        self.rows_per_epoch
    }

    /// Returns the indices of the samples in the row of sequence `sequence`.
    pub(crate) fn row(&self, sequence: u64) -> Vec<usize> {
        let count = self.rows_per_epoch as u64;
        let order = self.epoch_order(sequence / count);
        let row = order.rows[(sequence % count) as usize] as usize;
        match &order.packed {
            Some(packed) => packed.row(row).iter().map(|at| *at as usize).collect(),
            None => vec![row],
        }
    }

    /// The longest row of step `step`.
    pub(crate) fn longest_in_step(&self, step: u64) -> usize {
        self.lengths_in_step(step).max().unwrap_or(0)
    }

    /// Number of tokens in the rows of step `step`.
    pub(crate) fn tokens_in_step(&self, step: u64) -> usize {
        self.lengths_in_step(step).sum()
    }

    fn lengths_in_step(&self, step: u64) -> impl Iterator<Item = usize> + '_ {
        let first = step * self.per_step as u64;
        let sequences = first..first + self.per_step as u64;
        let length = |index: usize| self.lengths[index] as usize;
        sequences.map(move |sequence| self.row(sequence).into_iter().map(length).sum())
    }

    fn epoch_order(&self, epoch: u64) -> Arc<EpochOrder> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = &mut recent[(epoch % 2) as usize];
        if let Some(order) = recent
            && order.epoch == epoch
        {
            return Arc::clone(order);
        }
        let packed = self.pack(epoch);
        let lengths = packed
            .as_ref()
            .map_or(&self.lengths[..], PackedRows::lengths);
        let order = Arc::new(EpochOrder {
            epoch,
            rows: self.rows_of(epoch, lengths),
            packed,
        });
        *recent = Some(Arc::clone(&order));
        order
    }

    /// The samples of each row in `epoch`, if they are packed.
    fn pack(&self, epoch: u64) -> Option<PackedRows> {
        let capacity = self.capacity?;
        let order = self.permutation(stream::SAMPLE_ROWS, epoch, self.lengths.len());
        Some(PackedRows::best_fit(&self.lengths, &order, capacity))
    }

    /// A random order of `count` numbers for `epoch`.
    fn permutation(&self, stream: u64, epoch: u64, count: usize) -> Vec<u32> {
        let key = CounterRng::with_stream(self.seed, stream).at(epoch);
        let permutation = Permutation::new(key, count as u64);
        let positions = 0..count as u64;
        positions.map(|at| permutation.at(at) as u32).collect()
    }

    /// All rows, of these lengths, in the order of `epoch`.
    fn rows_of(&self, epoch: u64, lengths: &[u32]) -> Vec<u32> {
        let (count, per_step) = (lengths.len(), self.per_step);
        let mut order = self.permutation(stream::SAMPLE_EPOCHS, epoch, count);
        let by_length = |index: &u32| Reverse(lengths[*index as usize]);

        let started = (epoch * count as u64 % per_step as u64) as usize;
        let missing = ((per_step - started) % per_step).min(count);
        let (first, rest) = order.split_at_mut(missing);
        first.sort_by_key(by_length);
        // The last bucket has the remainder too, so that its longest rows fill a whole step.
        let buckets = (rest.len() / (BUCKET_STEPS * per_step)).max(1);
        let mut left = &mut *rest;
        for bucket in 0..buckets {
            let size = if bucket + 1 == buckets {
                left.len()
            } else {
                BUCKET_STEPS * per_step
            };
            let (rows, others) = std::mem::take(&mut left).split_at_mut(size);
            rows.sort_by_key(by_length);
            left = others;
        }

        let groups = rest.len() / per_step;
        let mut sequence = self.permutation(stream::SAMPLE_GROUPS, epoch, groups);
        if epoch == 0 {
            let longest = |group: u32| lengths[rest[group as usize * per_step] as usize];
            // The first of the longest ones.
            let found = (0..groups).rev().max_by_key(|at| longest(sequence[*at]));
            if let Some(found) = found {
                sequence.swap(0, found);
            }
        }
        let in_groups = sequence
            .iter()
            .flat_map(|group| &rest[*group as usize * per_step..][..per_step]);
        let all = first.iter().chain(in_groups);
        all.chain(&rest[groups * per_step..]).copied().collect()
    }
}
