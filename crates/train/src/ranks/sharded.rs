//! Exchanging gradients and weights of which each rank updates a part (`parallel.shard_optimizer`).
//!
//! Each rank gets the sums of its part of the gradients, updates that part of the weights, and sends it to all: together as
//! many bytes as the sums of all gradients on all ranks.

use std::collections::BTreeMap;
use std::ops::Range;

use nextword_kernels::{SQUARES_CHUNK, squares_by_chunk};
use nextword_parallel::{Group, Shards, TreeSum, consecutive};

use super::BUCKET;
use crate::TrainError;

/// What was exchanged, in the order in which it was: the updated weights follow the gradients.
#[derive(Debug)]
pub(crate) struct ShardLayout {
    /// Names and lengths of the parameters.
    parameters: Vec<(String, usize)>,
    /// The parts of the ranks in each bucket.
    buckets: Vec<Vec<Range<usize>>>,
}

/// This rank's part of the sums.
pub(super) struct ShardSums {
    pub(super) loss: f32,
    pub(super) norm: f64,
    /// Its part of each gradient of which it has one.
    pub(super) own: BTreeMap<String, Vec<f32>>,
    pub(super) layout: ShardLayout,
}

/// Packs gradients into buckets, in which each rank has a part: all links are used at the same time.
pub(super) struct ShardBuckets<'a> {
    group: &'a Group,
    shards: &'a Shards,
    /// What was not sent yet to each rank.
    queues: Vec<Vec<f32>>,
    buckets: Vec<Vec<Range<usize>>>,
}

impl<'a> ShardBuckets<'a> {
    pub(super) fn new(group: &'a Group, shards: &'a Shards) -> Self {
        Self {
            group,
            shards,
            queues: vec![Vec::new(); group.size()],
            buckets: Vec::new(),
        }
    }

    pub(super) fn send(&mut self, name: &str, values: &[f32]) -> Result<(), TrainError> {
        if self.shards.len(name) != Some(values.len()) {
            let problem = format!(
                "its gradient has {} values, which is not the size of the parameter",
                values.len()
            );
            let hint = "please report this, and set parallel.shard_optimizer = false";
            return Err(TrainError::config(name, problem, hint));
        }
        let ranges: Vec<_> = (0..self.queues.len())
            .map(|rank| self.shards.range(name, rank))
            .collect();
        let piece = (BUCKET / ranges.len()).max(1);
        let longest = ranges.iter().map(Range::len).max().unwrap_or_default();
        for offset in (0..longest).step_by(piece) {
            for (queue, range) in self.queues.iter_mut().zip(&ranges) {
                let start = (range.start + offset).min(range.end);
                let end = (start + piece).min(range.end);
                queue.extend_from_slice(&values[start..end]);
            }
            if self.queues.iter().map(Vec::len).sum::<usize>() >= BUCKET {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TrainError> {
        let values = self.queues.concat();
        if values.is_empty() {
            return Ok(());
        }
        let parts = consecutive(self.queues.iter().map(Vec::len));
        self.queues.iter_mut().for_each(Vec::clear);
        self.buckets.push(parts.clone());
        Ok(self.group.start_reduce(values, parts)?)
    }

    /// Waits for this rank's part. `loss` is that of this rank.
    pub(super) fn finish(
        mut self,
        parameters: Vec<(String, usize)>,
        loss: f32,
    ) -> Result<ShardSums, TrainError> {
        self.flush()?;
        let mut stream = Vec::new();
        for _ in &self.buckets {
            stream.extend(self.group.finish_numbers()?);
        }
        let rank = self.group.rank();
        let mut own = BTreeMap::new();
        let mut rest = &stream[..];
        for (name, _) in &parameters {
            let (values, after) = rest.split_at(self.shards.range(name, rank).len());
            rest = after;
            if !values.is_empty() {
                own.insert(name.clone(), values.to_vec());
            }
        }
        drop(stream);
        let (loss, norm) = self.loss_and_norm(&own, &parameters, loss)?;
        let layout = ShardLayout {
            parameters,
            buckets: self.buckets,
        };
        Ok(ShardSums {
            loss,
            norm,
            own,
            layout,
        })
    }

    /// The sum of the losses, and the norm of all gradients, with the bits of one rank that has all of them (on flex).
    fn loss_and_norm(
        &self,
        own: &BTreeMap<String, Vec<f32>>,
        parameters: &[(String, usize)],
        loss: f32,
    ) -> Result<(f32, f64), TrainError> {
        let squares = own.values().flat_map(|values| squares_by_chunk(values));
        let mut message = loss.to_le_bytes().to_vec();
        message.extend(squares.flat_map(f64::to_le_bytes));
        let all = self.group.gather(message)?;
        let mut losses = TreeSum::default();
        let mut squares: Vec<_> = all
            .iter()
            .map(|bytes| {
                let (loss, squares) = bytes.split_at(size_of::<f32>().min(bytes.len()));
                let loss = loss.first_chunk().copied().unwrap_or_default();
                losses.push(f32::from_le_bytes(loss), |a, b| a + b);
                squares
                    .as_chunks()
                    .0
                    .iter()
                    .map(|bytes| f64::from_le_bytes(*bytes))
            })
            .collect();
        let mut names: Vec<&String> = parameters.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        let mut sum = 0.0;
        for name in names {
            for (rank, squares) in squares.iter_mut().enumerate() {
                let chunks = self.shards.range(name, rank).len().div_ceil(SQUARES_CHUNK);
                squares.take(chunks).for_each(|square| sum += square);
            }
        }
        let loss = losses.finish(|a, b| a + b).unwrap_or_default();
        Ok((loss, f64::from((sum as f32).sqrt())))
    }
}

impl ShardLayout {
    /// Sends this rank's part of the updated weights, `own`, and returns the weights by name.
    pub(crate) fn collect(
        self,
        group: &Group,
        shards: &Shards,
        own: &BTreeMap<String, Vec<f32>>,
    ) -> Result<BTreeMap<String, Vec<f32>>, TrainError> {
        let rank = group.rank();
        let names = self.parameters.iter();
        let mut outgoing = names
            .filter_map(|(name, _)| own.get(name))
            .flatten()
            .copied();
        for parts in &self.buckets {
            let part: Vec<f32> = outgoing.by_ref().take(parts[rank].len()).collect();
            group.start_collect(part, parts.clone())?;
        }
        let mut streams = vec![Vec::new(); group.size()];
        for parts in &self.buckets {
            let values = group.finish_numbers()?;
            for (stream, part) in streams.iter_mut().zip(parts) {
                stream.extend_from_slice(&values[part.clone()]);
            }
        }
        let mut rest: Vec<&[f32]> = streams.iter().map(Vec::as_slice).collect();
        let mut weights = BTreeMap::new();
        for (name, len) in self.parameters {
            let mut values = Vec::with_capacity(len);
            for (rank, rest) in rest.iter_mut().enumerate() {
                let (part, after) = rest.split_at(shards.range(&name, rank).len());
                *rest = after;
                values.extend_from_slice(part);
            }
            weights.insert(name, values);
        }
        Ok(weights)
    }
}
