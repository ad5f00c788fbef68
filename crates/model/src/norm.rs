//! Layer and RMS normalization.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::ModelConfig;

/// Which normalization a model uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// No normalization, as in StatQuest's model.
    None,
    /// Mean 0 and variance 1, then scale and shift (Ba et al. 2016, arXiv 1607.06450).
    #[default]
    Layer,
    /// Root mean square 1, then scale (Zhang and Sennrich 2019, arXiv 1910.07467).
    Rms,
}

/// Where the norms of a block are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before each sublayer, `x + f(norm(x))`, with a final norm after the last block.
    #[default]
    Pre,
    /// After each residual sum: `norm(x + f(x))`.
    Post,
    /// Before and after each sublayer, `x + norm(f(norm(x)))`, with a final norm after the last
    /// block (Gemma 2).
    Sandwich,
}

/// Layer or RMS normalization over the last axis.
#[derive(Module, Debug)]
pub struct Norm {
    /// Scale, `[d]`.
    pub weight: Param<Tensor<1>>,
    /// Shift, `[d]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    kind: NormKind,
    eps: f64,
    unit_offset: bool,
}

impl Norm {
    /// The norm over `d` features that `config` describes, if any.
    pub(crate) fn new(config: &ModelConfig, d: usize, device: &Device) -> Option<Self> {
        let bias = config.norm == NormKind::Layer && config.bias.norm;
        (config.norm != NormKind::None).then(|| Self {
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([d], device))),
            kind: config.norm,
            ..Self::rms(config, d, device)
        })
    }

    /// An RMS norm without bias, for queries and keys.
    pub(crate) fn rms(config: &ModelConfig, d: usize, device: &Device) -> Self {
        // In both cases the initial factor is 1.
        let weight = if config.norm_unit_offset {
            Tensor::zeros([d], device)
        } else {
            Tensor::ones([d], device)
        };
        Self {
            weight: Param::from_tensor(weight),
            bias: None,
            kind: NormKind::Rms,
            eps: config.norm_eps,
            unit_offset: config.norm_unit_offset,
        }
    }

    /// Normalizes over the last axis: `(x - mean) / sqrt(var + eps) * weight + bias`, or for RMS
    /// `x / sqrt(mean(x^2) + eps) * weight`. The shape is unchanged. With a unit offset, the factor is
    /// `1 + weight`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let kind = match self.kind {
            NormKind::Layer => nextword_kernels::NormKind::Layer,
            NormKind::Rms | NormKind::None => nextword_kernels::NormKind::Rms,
        };
        let bias = self.bias.as_ref().map(Param::val);
        let weight = self.weight.val();
        let weight = if self.unit_offset {
            weight + 1.0
        } else {
            weight
        };
        nextword_kernels::normalize(kind, x, weight, bias, self.eps)
    }
}
