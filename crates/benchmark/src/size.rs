//! Predefined model shapes.

use nextword_model::{BiasConfig, ModelConfig, presets};

/// A model shape and its training batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 4 layers, 4 heads, width 128, context 64, batch 12, vocabulary 65
    Small,
    /// 6 layers, 6 heads, width 384, context 256, batch 4, vocabulary 65
    Medium,
    /// GPT-2 124M: 12 layers, 12 heads, width 768, context 256, batch 2, vocabulary 50257
    Gpt2,
}

impl Size {
    /// All sizes, in ascending order.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Gpt2];

    /// The name in results: `small`, `medium` or `gpt2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Gpt2 => "gpt2",
        }
    }

    /// The configuration.
    ///
    /// ```
    /// let config = nextword_benchmark::Size::Gpt2.config();
    /// // GPT-2's 124,439,808 parameters, less 768 position embeddings of 768 values.
    /// assert_eq!(config.parameter_counts().total(), 124_439_808 - 768 * 768);
    /// ```
    pub fn config(self) -> ModelConfig {
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
    pub fn batch(self) -> usize {
        match self {
            Self::Small => 12,
            Self::Medium => 4,
            Self::Gpt2 => 2,
        }
    }
}
