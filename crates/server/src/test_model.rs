//! A tiny model with random weights, for tests.

use std::sync::Arc;

use burn::tensor::Device;
use nextword_chat::ChatTemplate;
use nextword_data::{Tokenizer, TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_generate::TextGenerator;
use nextword_model::{CounterRng, LoraConfig, ModelCard, ModelConfig};

use crate::{LoadedAdapter, LoadedModel};

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

/// A chat template of the first message after `prefix`, which accepts all options.
fn template(prefix: &str) -> ChatTemplate {
    let options = "{% if tools or documents or enable_thinking %}{% endif %}";
    let source = format!("{prefix}{{{{ messages[0].content }}}}{options}");
    ChatTemplate::from_source(&source, "", "").unwrap()
}

/// The model as `name`, with a chat template.
pub(crate) fn loaded(name: &str) -> LoadedModel {
    LoadedModel::new(name, generator(byte_tokenizer())).with_chat_template(template(""))
}

/// `base` with an adapter of values that depend on `seed`.
pub(crate) fn adapted(base: &TextGenerator, seed: u64) -> TextGenerator {
    let config = LoraConfig {
        rank: 3,
        ..LoraConfig::default()
    };
    let new = base
        .model()
        .clone()
        .with_new_adapter(&config, seed)
        .unwrap();
    let mut adapter = new.adapter().unwrap();
    let rng = CounterRng::new(seed).named("b");
    for (number, module) in adapter.modules.values_mut().enumerate() {
        let rng = rng.stream(number as u64);
        for (i, value) in module.b.iter_mut().enumerate() {
            *value = 0.3 * rng.normal(i as u64) as f32;
        }
    }
    let model = base.model().clone().with_adapter(&adapter).unwrap();
    TextGenerator::new(model, base.tokenizer().clone(), ModelCard::default()).unwrap()
}

/// An adapter of `base` as `name`, with a chat template that begins prompts with the name.
pub(crate) fn adapter(name: &str, base: &LoadedModel, seed: u64) -> LoadedAdapter {
    let model = LoadedModel::new(name, adapted(base.generator(), seed));
    let model = model.with_chat_template(template(&format!("{name}: ")));
    LoadedAdapter::new(model, base.name()).unwrap()
}
