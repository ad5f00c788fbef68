//! Named configurations.

use crate::{
    Architecture, BiasConfig, FeedForwardKind, InitConfig, ModelConfig, NormKind, Position,
    RotaryConfig,
};

/// The names of the presets.
pub const NAMES: [&str; 9] = [
    "statquest",
    "statquest-normal",
    "shakespeare-char",
    "shakespeare-char-cpu",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "llama-like",
];

/// The preset called `name`, with `vocab_size` unless the architecture fixes it.
///
/// # Example
///
/// ```
/// use nextword_model::presets;
///
/// let config = presets::by_name("shakespeare-char", 65).ok_or("unknown preset")?;
/// assert_eq!((config.vocab_size, config.n_layers, config.d_model), (65, 6, 384));
/// assert_eq!(presets::by_name("gpt2", 65).ok_or("unknown preset")?.vocab_size, 50_257);
/// assert!(presets::by_name("gpt9", 65).is_none());
/// # Ok::<(), &str>(())
/// ```
pub fn by_name(name: &str, vocab_size: usize) -> Option<ModelConfig> {
    Some(match name {
        "statquest" => statquest(vocab_size),
        "statquest-normal" => statquest_normal(vocab_size),
        "shakespeare-char" => shakespeare_char(vocab_size),
        "shakespeare-char-cpu" => shakespeare_char_cpu(vocab_size),
        "gpt2" => gpt2(12, 12, 768),
        "gpt2-medium" => gpt2(24, 16, 1024),
        "gpt2-large" => gpt2(36, 20, 1280),
        "gpt2-xl" => gpt2(48, 25, 1600),
        "llama-like" => llama_like(vocab_size),
        _ => return None,
    })
}

/// `StatQuest`'s model: width 2, one head, one layer, sinusoidal positions, a residual connection
/// around attention, and an output layer with bias. 37 parameters with its vocabulary of 5.
pub fn statquest(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        context_length: 6,
        n_layers: 1,
        n_heads: 1,
        d_model: 2,
        position: Position::Sinusoidal,
        norm: NormKind::None,
        feed_forward: FeedForwardKind::None,
        bias: BiasConfig {
            head: true,
            ..BiasConfig::none()
        },
        tied_head: false,
        output_projection: false,
        init: InitConfig {
            std: 1.0,
            scale_output: false,
        },
        ..ModelConfig::default()
    }
}

/// `StatQuest`'s normal Transformer: an encoder and a decoder of one layer and width 2, with one head each,
/// sinusoidal positions, residual connections and an output layer with bias. Words of the input and of the
/// output have separate embeddings, here of one vocabulary.
pub fn statquest_normal(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::EncoderDecoder,
        share_embeddings: false,
        ..statquest(vocab_size)
    }
}

/// nanoGPT's six-layer character model.
pub fn shakespeare_char(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        context_length: 256,
        n_layers: 6,
        n_heads: 6,
        d_model: 384,
        bias: BiasConfig::none(),
        dropout: crate::DropoutConfig {
            embedding: 0.2,
            attention: 0.2,
            residual: 0.2,
        },
        ..ModelConfig::default()
    }
}

/// nanoGPT's four-layer character model for a CPU.
pub fn shakespeare_char_cpu(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        bias: BiasConfig::none(),
        ..ModelConfig::default()
    }
}

/// GPT-2 (Radford et al. 2019), with a vocabulary of 50257 and a context of 1024.
pub fn gpt2(n_layers: usize, n_heads: usize, d_model: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: 50_257,
        context_length: 1024,
        n_layers,
        n_heads,
        d_model,
        feed_forward: FeedForwardKind::GeluTanh,
        ..ModelConfig::default()
    }
}

/// A small Llama-like model: rotary positions, RMS norm, `SwiGLU`, grouped-query attention, no
/// biases.
pub fn llama_like(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        context_length: 256,
        n_layers: 6,
        n_heads: 6,
        n_kv_heads: Some(2),
        d_model: 384,
        position: Position::Rotary,
        rotary: RotaryConfig::default(),
        norm: NormKind::Rms,
        feed_forward: FeedForwardKind::Swiglu,
        bias: BiasConfig::none(),
        tied_head: false,
        ..ModelConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for name in NAMES {
            let preset = by_name(name, 65);
            assert!(preset.is_some_and(|p| p.validate().is_ok()), "{name}");
        }
    }
}
