//! Speculative decoding against decoding token by token.

use super::*;
use crate::SamplingConfig;
use crate::Speculation;

/// The sequences, and how many forward passes decoded them.
fn decode_with(
    model: &Transformer,
    prompts: &[Vec<u32>],
    options: &DecodeOptions,
    speculation: Option<&Speculation>,
) -> (Vec<Sequence>, usize) {
    let decoder = Decoder::new(model, prompts, options.clone()).unwrap();
    let mut decoder = match speculation {
        Some(speculation) => decoder.with_speculation(speculation).unwrap(),
        None => decoder,
    };
    let mut passes = 0;
    while !decoder.is_done() {
        let is_verified = decoder.rows.iter().any(|row| {
            let next = row.lookahead.front().map(|(id, _)| id);
            next.is_some() && next == row.context.last()
        });
        passes += usize::from(!is_verified);
        decoder.step().unwrap();
    }
    (decoder.into_sequences(), passes)
}

fn draft_of(config: &ModelConfig, seed: u64) -> Speculation {
    let model = config.init(&burn::tensor::Device::flex(), seed).unwrap();
    Speculation::Draft {
        model: Box::new(model),
        max_tokens: 4,
    }
}

fn speculations(config: &ModelConfig) -> Vec<Speculation> {
    let smaller = ModelConfig {
        n_layers: 1,
        context_length: 11,
        ..config.clone()
    };
    vec![
        Speculation::PromptLookup { max_tokens: 3 },
        Speculation::PromptLookup { max_tokens: 15 },
        draft_of(config, 3), // the model itself
        draft_of(&smaller, 4),
    ]
}

fn sampled(seed: u64, config: SamplingConfig) -> DecodeOptions {
    DecodeOptions {
        sampling: SamplingConfig { seed, ..config },
        max_tokens: 40,
        first_sequence: seed,
        ..DecodeOptions::default()
    }
}

#[test]
fn greedy_tokens_are_those_of_single_steps_for_100_prompts() {
    for (name, config) in architectures() {
        let model = model(&config);
        for speculation in speculations(&config) {
            for n in 0..100 / 10 {
                let prompt = prompt(1 + n % 12, n);
                let prompts = [[&prompt[..], &prompt].concat(), prompt];
                for prompts in [&prompts[..], &prompts[..1]] {
                    let options = greedy(30);
                    let (expected, _) = decode_with(&model, prompts, &options, None);
                    let (actual, _) = decode_with(&model, prompts, &options, Some(&speculation));
                    assert_eq!(actual, expected, "{name}, {speculation:?}");
                }
            }
        }
    }
}

#[test]
fn sampled_tokens_have_the_same_bits() {
    let penalties = SamplingConfig {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        top_p: Some(0.9),
        ..SamplingConfig::default()
    };
    for position in [Position::Rotary, Position::Alibi] {
        let config = config(position);
        let model = model(&config);
        for speculation in speculations(&config) {
            for seed in 0..25 {
                for sampling in [SamplingConfig::default(), penalties.clone()] {
                    let prompts = [prompt(9, 1), prompt(3, seed as u32)];
                    let options = DecodeOptions {
                        stop_ids: vec![2],
                        ..sampled(seed, sampling)
                    };
                    let (expected, _) = decode_with(&model, &prompts, &options, None);
                    let (actual, _) = decode_with(&model, &prompts, &options, Some(&speculation));
                    assert_eq!(actual, expected, "seed {seed}");
                }
            }
        }
    }
}

#[test]
fn right_proposals_save_forward_passes() {
    let config = ModelConfig {
        context_length: 128,
        ..config(Position::Rotary)
    };
    let model = model(&config);
    let prompts = [prompt(9, 1)];
    for options in [greedy(40), sampled(5, SamplingConfig::default())] {
        let (_, alone) = decode_with(&model, &prompts, &options, None);
        let (_, drafted) = decode_with(&model, &prompts, &options, Some(&draft_of(&config, 3)));
        assert_eq!(
            (alone, drafted),
            (40, 9),
            "a prefill, then five tokens per pass"
        );
    }
    // Greedy decoding of a small model repeats itself.
    let lookup = Speculation::PromptLookup { max_tokens: 8 };
    let (_, passes) = decode_with(&model, &prompts, &greedy(100), Some(&lookup));
    assert!(passes < 80, "{passes}");
}

#[test]
fn a_draft_model_of_another_vocabulary_is_rejected() {
    let config = config(Position::Rotary);
    let model = model(&config);
    let other = ModelConfig {
        vocab_size: VOCAB + 1,
        ..config
    };
    let decoder = Decoder::new(&model, &[vec![1]], greedy(3)).unwrap();
    let error = decoder.with_speculation(&draft_of(&other, 1)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("14 tokens, the model one of 13"), "{text}");
}
