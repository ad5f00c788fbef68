//! A tiny model with random weights, for tests.

use std::sync::Arc;

use burn::tensor::Device;
use nextword_chat::ChatTemplate;
use nextword_data::{Tokenizer, TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_generate::TextGenerator;
use nextword_model::{ModelCard, ModelConfig};

use crate::LoadedModel;

pub(crate) fn byte_tokenizer() -> Arc<dyn Tokenizer> {
    let config = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    build_tokenizer(&config, std::iter::empty()).unwrap()
}

pub(crate) fn generator(tokenizer: Arc<dyn Tokenizer>) -> TextGenerator {
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        context_length: 64,
        n_layers: 1,
        n_heads: 2,
        d_model: 16,
        ..ModelConfig::default()
    };
    let model = config.init(&Device::flex(), 3).unwrap();
    TextGenerator::new(model, tokenizer, ModelCard::default()).unwrap()
}

/// The model as `name`, with a chat template.
pub(crate) fn loaded(name: &str) -> LoadedModel {
    let source =
        "{{ messages[0].content }}{% if tools or documents or enable_thinking %}{% endif %}";
    let template = ChatTemplate::from_source(source, "", "").unwrap();
    LoadedModel::new(name, generator(byte_tokenizer())).with_chat_template(template)
}
