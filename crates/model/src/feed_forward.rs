//! The position-wise feed-forward layer (MLP).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use nextword_kernels::{Activation, LinearFusion};
use serde::{Deserialize, Serialize};

use crate::linear::{Linear, zero_linear};
use crate::{ForwardContext, Hook, ModelConfig, Probe};

/// Which feed-forward layer a block has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForwardKind {
    /// No feed-forward layer, as in StatQuest's model.
    None,
    /// `gelu(x) = x * Phi(x)`, exact (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    #[default]
    Gelu,
    /// GELU by its tanh approximation, as GPT-2 was trained with.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2` (So et al. 2021, arXiv 2109.08668).
    ReluSquared,
    /// `x * sigmoid(x)`.
    Silu,
    /// `silu(gate) * up` (Shazeer 2020, arXiv 2002.05202).
    Swiglu,
    /// `gelu(gate) * up` with the exact GELU.
    Geglu,
    /// `gelu(gate) * up` with GELU's tanh approximation (Gemma).
    GegluTanh,
}

impl FeedForwardKind {
    /// Whether a third matrix computes a gate that multiplies the hidden units.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Swiglu | Self::Geglu | Self::GegluTanh)
    }

    pub(crate) fn activation(self) -> Activation {
        match self {
            Self::None | Self::Gelu | Self::Geglu => Activation::Gelu,
            Self::GeluTanh | Self::GegluTanh => Activation::GeluTanh,
            Self::Relu => Activation::Relu,
            Self::ReluSquared => Activation::ReluSquared,
            Self::Silu | Self::Swiglu => Activation::Silu,
        }
    }
}

/// `down(activation(up(x)))`, or gated: `down(activation(gate(x)) * up(x))`.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// `[d_model, d_ff]`; gated kinds only.
    pub gate: Option<Linear>,
    /// `[d_model, d_ff]`.
    pub up: Linear,
    /// `[d_ff, d_model]`.
    pub down: Linear,
    #[module(skip)]
    kind: FeedForwardKind,
}

impl FeedForward {
    /// The layer that `config` describes, if any.
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Option<Self> {
        let (d_model, d_ff, bias) = (config.d_model, config.d_ff(), config.bias.feed_forward);
        let kind = config.feed_forward;
        (kind != FeedForwardKind::None).then(|| Self {
            gate: kind
                .is_gated()
                .then(|| zero_linear(d_model, d_ff, bias, device)),
            up: zero_linear(d_model, d_ff, bias, device),
            down: zero_linear(d_ff, d_model, bias, device),
            kind,
        })
    }

    /// `[batch, seq, d_model]` to `[batch, seq, d_model]`.
    pub fn forward<P: Probe>(&self, x: Tensor<3>, ctx: &mut ForwardContext<'_, P>) -> Tensor<3> {
        self.forward_add(x, None, ctx)
    }

    /// [`forward`](Self::forward) plus `residual`.
    pub(crate) fn forward_add<P: Probe>(
        &self,
        x: Tensor<3>,
        residual: Option<Tensor<3>>,
        ctx: &mut ForwardContext<'_, P>,
    ) -> Tensor<3> {
        let fusion = |residual, activation| LinearFusion {
            residual,
            activation,
        };
        let hidden = match &self.gate {
            Some(gate) => {
                let gate = ctx.linear(gate, Hook::LoraGate, x.clone());
                let up = ctx.linear(&self.up, Hook::LoraUp, x);
                ctx.record(Hook::MlpPre, &gate);
                ctx.record(Hook::MlpPreLinear, &up);
                nextword_kernels::gate(self.kind.activation(), gate, up)
            }
            None if !ctx.is_probed() => {
                let fusion = fusion(None, Some(self.kind.activation()));
                ctx.linear_fused(&self.up, Hook::LoraUp, x, fusion)
            }
            None => {
                let up = ctx.linear(&self.up, Hook::LoraUp, x);
                ctx.record(Hook::MlpPre, &up);
                nextword_kernels::activate(self.kind.activation(), up)
            }
        };
        ctx.record(Hook::MlpPost, &hidden);
        ctx.linear_fused(&self.down, Hook::LoraDown, hidden, fusion(residual, None))
    }
}
