//! No token is generated that a model has not learned: unused ids, and the token for unknown text.

use burn::tensor::Device;
use nextword_data::TokenizerConfig;
use nextword_generate::{Overflow, SamplingConfig, TextGenerator, TextOptions};
use nextword_model::{ModelConfig, presets};

fn generator(tokenizer: &TokenizerConfig, padding: usize) -> TextGenerator {
    let tokenizer = tokenizer.build("what is statquest awesome").unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size() + padding,
        ..presets::statquest(5)
    };
    let model = config.init(&Device::flex(), 3).unwrap();
    TextGenerator::without_card(model, tokenizer).unwrap()
}

/// The ids of long, nearly random completions.
fn sampled(generator: &TextGenerator, sampling: &SamplingConfig) -> Vec<u32> {
    let mut ids = Vec::new();
    for seed in 0..20 {
        let options = TextOptions {
            sampling: SamplingConfig {
                seed,
                ..sampling.clone()
            },
            max_tokens: 30,
            stop_at_eos: false,
            overflow: Overflow::Slide,
            ..TextOptions::default()
        };
        ids.extend(generator.complete("what is", &options).unwrap().ids);
    }
    ids
}

#[test]
fn unknown_and_unused_tokens_are_never_generated() {
    let hot = SamplingConfig {
        temperature: 50.0,
        ..SamplingConfig::default()
    };
    let filtered = SamplingConfig {
        top_k: Some(7),
        top_p: Some(0.999),
        repetition_penalty: 1.5,
        presence_penalty: 0.5,
        ..hot.clone()
    };
    for kind in [TokenizerConfig::words(), TokenizerConfig::chars()] {
        let generator = generator(&kind, 5);
        let tokenizer = generator.tokenizer();
        let unknown = tokenizer.special_tokens().unk.unwrap();
        for sampling in [&hot, &filtered] {
            let ids = sampled(&generator, sampling);
            assert!(ids.len() > 100);
            assert!(
                ids.iter()
                    .all(|id| (*id as usize) < tokenizer.vocab_size() && *id != unknown)
            );
        }
        // A bias asks for the token.
        let mut biased = hot.clone();
        biased.logit_bias.insert(unknown, 50_000.0);
        assert!(sampled(&generator, &biased).iter().all(|id| *id == unknown));
    }
}

#[test]
fn models_that_have_learned_all_tokens_are_sampled_as_before() {
    let generator = generator(&TokenizerConfig::words().with_unk(""), 0);
    for config in [SamplingConfig::default(), SamplingConfig::greedy()] {
        assert_eq!(generator.sampling(&config), config);
    }
}
