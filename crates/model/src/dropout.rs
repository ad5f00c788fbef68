//! Dropout whose mask is a pure function of (seed, step, place).
//!
//! Burn's own dropout draws from one global generator per backend, whose state cannot be saved. Here
//! nothing has to be saved: a resumed run, another backend and another split into micro-batches
//! all see the same masks.

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{CounterRng, ModelError, Site};

/// Dropout rates (Srivastava et al. 2014): the share of numbers set to zero in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropoutConfig {
    /// On the sum of word embedding and position encoding.
    pub embedding: f64,
    /// On the attention percentages.
    pub attention: f64,
    /// On what attention and feed-forward add to the residual stream.
    pub residual: f64,
}

impl DropoutConfig {
    pub(crate) fn validate(self) -> Result<(), ModelError> {
        for rate in [self.embedding, self.attention, self.residual] {
            if !(0.0..1.0).contains(&rate) {
                return Err(ModelError::config(
                    "dropout",
                    format!("{rate} is not a rate"),
                    "use a number from 0.0 up to, but not, 1.0",
                ));
            }
        }
        Ok(())
    }
}

/// Which dropout masks a forward pass uses.
#[derive(Clone, Copy, Debug, Default)]
pub enum Dropout {
    /// None: inference and validation.
    #[default]
    Off,
    /// Training.
    On {
        /// The stream of this training step.
        rng: CounterRng,
        /// Number of the first sequence of this micro-batch within the step, so that two
        /// micro-batches of 8 are masked like one batch of 16.
        first_sequence: usize,
    },
}

impl Dropout {
    /// The masks of one training step, for a micro-batch that starts at `first_sequence`.
    pub fn training(seed: u64, step: u64, first_sequence: usize) -> Self {
        Self::On {
            rng: CounterRng::new(seed).named("dropout").stream(step),
            first_sequence,
        }
    }

    /// Sets a share `rate` of `x` (any shape, first axis the batch) to zero and scales the rest by
    /// `1 / (1 - rate)`.
    pub(crate) fn apply<const D: usize>(self, x: Tensor<D>, rate: f64, site: Site) -> Tensor<D> {
        let Self::On {
            rng,
            first_sequence,
        } = self
        else {
            return x;
        };
        if rate == 0.0 {
            return x;
        }
        let shape = x.dims();
        let len: usize = shape.iter().product();
        let first = (first_sequence * (len / shape[0])) as u64;
        let values = mask(rng.stream(site.number()), first, len, rate);
        let device = x.device();
        let mask = Tensor::<D>::from_data(TensorData::new(values, shape), &device);
        x.clone() * mask.cast(x.dtype())
    }
}

/// `len` numbers that are 0 with probability `rate`, else `1 / (1 - rate)`: those of the places
/// from `first`.
fn mask(rng: CounterRng, first: u64, len: usize, rate: f64) -> Vec<f32> {
    let keep = (1.0 / (1.0 - rate)) as f32;
    // Two masks' worth of bits in each draw: 32 bits resolve any rate that matters.
    let threshold = (rate * 4_294_967_296.0) as u64;
    (first..first + len as u64)
        .map(|place| {
            let bits = rng.at(place / 2) >> (32 * (place % 2)) & 0xFFFF_FFFF;
            if bits < threshold { 0.0 } else { keep }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_masked_like_the_whole_batch() {
        let rng = CounterRng::new(1);
        let whole = mask(rng, 0, 60, 0.3);
        let parts: Vec<_> = [mask(rng, 0, 25, 0.3), mask(rng, 25, 35, 0.3)].concat();
        assert_eq!(whole, parts);
    }

    #[test]
    fn the_share_of_zeros_is_the_rate_and_the_mean_stays_one() {
        let values = mask(CounterRng::new(1), 0, 100_000, 0.2);
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / 1e5;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        assert!((zeros - 0.2).abs() < 0.01 && (mean - 1.0).abs() < 0.01);
    }
}
