//! Dropout whose mask is a pure function of the seed, the step and the element's index.
//!
//! Burn's own dropout uses one global generator per backend, whose state cannot be saved. This one
//! has no state: a resumed run, another backend and another split into micro-batches all get the
//! same masks.

use burn::tensor::Tensor;
use nextword_kernels::{AttentionDropout, CounterRng, DropoutMask};
use serde::{Deserialize, Serialize};

use crate::{ModelError, Site};

/// Dropout rates (Srivastava et al. 2014): the probability of zeroing an element in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropoutConfig {
    /// On the sum of token embedding and position encoding.
    pub embedding: f64,
    /// On the attention weights.
    pub attention: f64,
    /// On the outputs of attention and feed-forward, before they are added to the residual stream.
    pub residual: f64,
}

impl DropoutConfig {
    pub(crate) fn validate(self) -> Result<(), ModelError> {
        for rate in [self.embedding, self.attention, self.residual] {
            if !(0.0..1.0).contains(&rate) {
                return Err(ModelError::config(
                    "dropout",
                    format!("{rate} is not a valid dropout rate"),
                    "use a value of at least 0.0 and less than 1.0",
                ));
            }
        }
        Ok(())
    }
}

/// The dropout masks of a forward pass.
#[derive(Clone, Copy, Debug, Default)]
pub enum Dropout {
    /// No dropout: inference and validation.
    #[default]
    Off,
    /// Training.
    On {
        /// The random stream of this training step.
        rng: CounterRng,
        /// Index of this micro-batch's first sequence within the step, so that two micro-batches of
        /// 8 get the same masks as one batch of 16.
        first_sequence: usize,
    },
}

impl Dropout {
    /// The masks of one training step, for a micro-batch that starts at `first_sequence`.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::{Device, Int, Tensor};
    /// use nextword_model::{Dropout, DropoutConfig, ForwardContext, presets};
    ///
    /// let device = Device::flex();
    /// let mut config = presets::shakespeare_char_cpu(65);
    /// config.dropout = DropoutConfig { residual: 0.2, ..config.dropout };
    /// let model = config.init(&device, 1)?;
    /// let logits = |step| {
    ///     let tokens = Tensor::<2, Int>::from_ints([[5, 6, 7]], &device);
    ///     let mut ctx = ForwardContext::training(Dropout::training(1, step, 0));
    ///     model.forward(tokens, &mut ctx).into_data()
    /// };
    /// assert_eq!(logits(10), logits(10)); // masks depend on seed and step alone
    /// assert_ne!(logits(10), logits(11));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn training(seed: u64, step: u64, first_sequence: usize) -> Self {
        Self::On {
            rng: CounterRng::new(seed).named("dropout").stream(step),
            first_sequence,
        }
    }

    /// Zeroes elements of `x` (any shape, batch first) with probability `rate` and scales the rest
    /// by `1 / (1 - rate)`.
    pub(crate) fn apply<const D: usize>(self, x: Tensor<D>, rate: f64, site: Site) -> Tensor<D> {
        match self.mask(&x, rate, site) {
            Some(mask) => nextword_kernels::dropout(x, mask),
            None => x,
        }
    }

    /// The mask for `x` (any shape, batch first); `None` without dropout.
    pub(crate) fn mask<const D: usize>(
        self,
        x: &Tensor<D>,
        rate: f64,
        site: Site,
    ) -> Option<DropoutMask> {
        let Self::On {
            rng,
            first_sequence,
        } = self
        else {
            return None;
        };
        let row: usize = x.dims()[1..].iter().product();
        Some(DropoutMask {
            rng: rng.stream(site.stream_id()),
            rate,
            offset: (first_sequence * row) as u64,
        })
    }

    /// The mask for attention weights, which the attention kernel applies.
    pub(crate) fn for_attention(self, rate: f64, site: Site) -> Option<AttentionDropout> {
        match self {
            Self::On {
                rng,
                first_sequence,
            } if rate > 0.0 => Some(AttentionDropout {
                rng: rng.stream(site.stream_id()),
                rate,
                first_sequence: first_sequence as u64,
            }),
            _ => None,
        }
    }
}
