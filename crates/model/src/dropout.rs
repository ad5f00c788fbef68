//! Dropout whose mask is a pure function of (seed, step, place).
//!
//! Burn's own dropout draws from one global generator per backend, whose state cannot be saved. Here
//! nothing has to be saved: a resumed run, another backend and another split into micro-batches
//! all see the same masks.

use burn::tensor::Tensor;
use nextword_kernels::{AttentionDropout, CounterRng, DropoutMask};
use serde::{Deserialize, Serialize};

use crate::{ModelError, Site};

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
        let shape = x.dims();
        let row: usize = shape[1..].iter().product();
        let mask = DropoutMask {
            rng: rng.stream(site.number()),
            rate,
            first: (first_sequence * row) as u64,
        };
        nextword_kernels::dropout(x, mask)
    }

    /// The same on attention's percentages.
    pub(crate) fn on_attention(self, rate: f64, site: Site) -> Option<AttentionDropout> {
        match self {
            Self::On {
                rng,
                first_sequence,
            } if rate > 0.0 => Some(AttentionDropout {
                rng: rng.stream(site.number()),
                rate,
                first_sequence: first_sequence as u64,
            }),
            _ => None,
        }
    }
}
