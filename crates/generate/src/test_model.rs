//! An untrained model for the tests of this crate.
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use nextword_data::TokenizerConfig;
use nextword_model::{Architecture, ModelConfig};

use crate::TextGenerator;

/// A small model of `architecture` whose tokens are the words of `text`, with the mask token `mask` unless it is empty.
pub(crate) fn of_words(architecture: Architecture, text: &str, mask: &str) -> TextGenerator {
    let config = TokenizerConfig {
        mask: mask.to_string(),
        ..TokenizerConfig::words()
    };
    let tokenizer = config.build(text).unwrap();
    let config = ModelConfig {
        architecture,
        vocab_size: tokenizer.vocab_size(),
        context_length: 8,
        n_layers: 1,
        n_heads: 2,
        d_model: 8,
        ..ModelConfig::default()
    };
    let model = config.init(&Device::flex(), 3).unwrap();
    TextGenerator::without_card(model, tokenizer).unwrap()
}
