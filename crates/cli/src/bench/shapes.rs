//! Models of known shape, with random weights.

use clap::ValueEnum;
use nextword_model::{BiasConfig, ModelConfig, presets};

/// A model to measure, and the batch that trains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// 4 layers, 4 heads, 128 numbers, context 64, batch 12, 65 tokens
    Small,
    /// 6 layers, 6 heads, 384 numbers, context 256, batch 4, 65 tokens
    Medium,
    /// GPT-2's 124M: 12 layers, 12 heads, 768 numbers, context 256, batch 2, 50257 tokens
    Gpt2,
}

impl Size {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Gpt2 => "gpt2",
        }
    }

    pub(crate) fn config(self) -> ModelConfig {
        match self {
            Self::Small => presets::shakespeare_char_cpu(65),
            Self::Medium => ModelConfig {
                context_length: 256,
                n_layers: 6,
                n_heads: 6,
                d_model: 384,
                bias: BiasConfig::none(),
                vocab_size: 65,
                ..ModelConfig::default()
            },
            Self::Gpt2 => ModelConfig {
                context_length: 256,
                ..presets::gpt2(12, 12, 768)
            },
        }
    }

    /// Sequences in a training step.
    pub(crate) fn batch(self) -> usize {
        match self {
            Self::Small => 12,
            Self::Medium => 4,
            Self::Gpt2 => 2,
        }
    }
}
