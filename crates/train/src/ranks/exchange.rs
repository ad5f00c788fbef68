//! Summing gradients over the ranks while they are computed.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use nextword_model::weights;
use nextword_parallel::{Group, Shards};

use super::BUCKET;
use super::sharded::{ShardBuckets, ShardLayout};
use crate::{Gradients, TrainError};

/// Loss and gradients of all ranks.
pub(crate) struct Exchanged {
    pub(crate) loss: Tensor<1>,
    /// The global norm of the gradients if this rank has a part of them; otherwise it can compute it.
    pub(crate) norm: Option<f64>,
    /// The sums of the gradients, or this rank's part of them.
    pub(crate) gradients: Gradients,
    /// How the ranks share them.
    pub(crate) sharded: Option<ShardLayout>,
}

/// Sums gradients over the ranks, in the tree of [`nextword_parallel::TreeSum`]. All ranks send the same gradients in the
/// same order.
pub(crate) struct GradientExchange<'a> {
    outgoing: Outgoing<'a>,
    /// Names and lengths of the gradients, in the order in which they were sent.
    layout: Vec<(String, usize)>,
}

enum Outgoing<'a> {
    All(Buckets<'a>),
    Shards(ShardBuckets<'a>),
}

impl<'a> GradientExchange<'a> {
    /// Each rank gets all sums, or with `shards` its part of them.
    pub(crate) fn new(group: &'a Group, shards: Option<&'a Shards>) -> Self {
        Self {
            outgoing: match shards {
                Some(shards) => Outgoing::Shards(ShardBuckets::new(group, shards)),
                None => Outgoing::All(Buckets::new(group)),
            },
            layout: Vec::new(),
        }
    }

    /// Sends a gradient, which is flat.
    pub(crate) fn send(&mut self, name: String, gradient: Tensor<1>) -> Result<(), TrainError> {
        let values = weights::to_f32_vec(gradient.into_data());
        match &mut self.outgoing {
            Outgoing::All(buckets) => buckets.send(&values)?,
            Outgoing::Shards(buckets) => buckets.send(&name, &values)?,
        }
        self.layout.push((name, values.len()));
        Ok(())
    }

    /// Names and lengths of the gradients that were sent.
    pub(crate) fn layout(&self) -> &[(String, usize)] {
        &self.layout
    }

    /// Waits for the sums. `loss` is that of this rank.
    pub(crate) fn finish(self, loss: Tensor<1>) -> Result<Exchanged, TrainError> {
        let device = loss.device();
        let own_loss = weights::to_f32_vec(loss.into_data());
        match self.outgoing {
            Outgoing::All(mut buckets) => {
                buckets.send(&own_loss)?;
                let mut incoming = buckets.finish()?;
                let mut sums = BTreeMap::new();
                for (name, len) in self.layout {
                    sums.insert(name, tensor(incoming.receive(len)?, &device));
                }
                Ok(Exchanged {
                    loss: tensor(incoming.receive(1)?, &device),
                    norm: None,
                    gradients: Gradients::from_map(sums),
                    sharded: None,
                })
            }
            Outgoing::Shards(buckets) => {
                let loss = own_loss.first().copied().unwrap_or_default();
                let found = buckets.finish(self.layout, loss)?;
                let own = found.own.into_iter();
                let own = own.map(|(name, values)| (name, tensor(values, &device)));
                Ok(Exchanged {
                    loss: tensor(vec![found.loss], &device),
                    norm: Some(found.norm),
                    gradients: Gradients::from_map(own.collect()),
                    sharded: Some(found.layout),
                })
            }
        }
    }
}

fn tensor(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

/// Packs numbers into buckets. The sum of a full one starts at once.
struct Buckets<'a> {
    group: &'a Group,
    bucket: Vec<f32>,
}

impl<'a> Buckets<'a> {
    fn new(group: &'a Group) -> Self {
        Self {
            group,
            bucket: Vec::with_capacity(BUCKET),
        }
    }

    fn send(&mut self, mut values: &[f32]) -> Result<(), TrainError> {
        while !values.is_empty() {
            let free = BUCKET - self.bucket.len();
            let (now, later) = values.split_at(free.min(values.len()));
            self.bucket.extend_from_slice(now);
            values = later;
            if self.bucket.len() == BUCKET {
                let full = std::mem::replace(&mut self.bucket, Vec::with_capacity(BUCKET));
                self.group.start_sum(full)?;
            }
        }
        Ok(())
    }

    /// Starts the last sum, of the numbers that are left.
    fn finish(self) -> Result<Sums<'a>, TrainError> {
        if !self.bucket.is_empty() {
            self.group.start_sum(self.bucket)?;
        }
        Ok(Sums {
            group: self.group,
            bucket: Vec::new(),
            taken: 0,
        })
    }
}

/// The sums of [`Buckets`], in the order in which the numbers were sent.
struct Sums<'a> {
    group: &'a Group,
    bucket: Vec<f32>,
    taken: usize,
}

impl Sums<'_> {
    fn receive(&mut self, len: usize) -> Result<Vec<f32>, TrainError> {
        let mut values = Vec::with_capacity(len);
        while values.len() < len {
            if self.taken == self.bucket.len() {
                self.bucket = self.group.finish_numbers()?;
                self.taken = 0;
            }
            let end = (self.taken + len - values.len()).min(self.bucket.len());
            values.extend_from_slice(&self.bucket[self.taken..end]);
            self.taken = end;
        }
        Ok(values)
    }
}
