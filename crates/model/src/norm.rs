//! Normalization of each token's numbers.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::ModelConfig;

/// Which normalization a model uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// None at all, as in StatQuest's model.
    None,
    /// Mean 0 and variance 1, then scale and shift (Ba et al. 2016, arXiv 1607.06450).
    #[default]
    Layer,
    /// Root mean square 1, then scale (Zhang and Sennrich 2019, arXiv 1910.07467).
    Rms,
}

/// Where norms stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before each sublayer, and one after the last block: `x + f(norm(x))`.
    #[default]
    Pre,
    /// After each residual sum: `norm(x + f(x))`.
    Post,
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
}

impl Norm {
    /// The norm that `config` asks for over `d` numbers; `None` if it asks for none.
    pub(crate) fn new(config: &ModelConfig, d: usize, device: &Device) -> Option<Self> {
        let bias = config.norm == NormKind::Layer && config.bias.norm;
        (config.norm != NormKind::None).then(|| Self {
            weight: Param::from_tensor(Tensor::ones([d], device)),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([d], device))),
            kind: config.norm,
            eps: config.norm_eps,
        })
    }

    /// An RMS norm without shift, for queries and keys.
    pub(crate) fn rms(d: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([d], device)),
            bias: None,
            kind: NormKind::Rms,
            eps,
        }
    }

    /// Normalizes over the last axis: `(x - mean) / sqrt(var + eps) * weight + bias`, for RMS
    /// `x / sqrt(mean(x^2) + eps) * weight`. The shape stays.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let kind = match self.kind {
            NormKind::Layer => nextword_kernels::NormKind::Layer,
            NormKind::Rms | NormKind::None => nextword_kernels::NormKind::Rms,
        };
        let bias = self.bias.as_ref().map(Param::val);
        nextword_kernels::normalize(kind, x, self.weight.val(), bias, self.eps)
    }
}
