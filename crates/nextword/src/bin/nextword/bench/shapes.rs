//! Predefined model shapes.

use clap::ValueEnum;
use nextword_model::{BiasConfig, ModelConfig, presets};

/// A model shape and its training batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// 4 layers, 4 heads, width 128, context 64, batch 12, vocabulary 65
    Small,
    /// 6 layers, 6 heads, width 384, context 256, batch 4, vocabulary 65
    Medium,
    /// GPT-2 124M: 12 layers, 12 heads, width 768, context 256, batch 2, vocabulary 50257
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

    /// Number of sequences per training step.
    pub(crate) fn batch(self) -> usize {
        match self {
            Self::Small => 12,
            Self::Medium => 4,
            Self::Gpt2 => 2,
        }
    }
}
