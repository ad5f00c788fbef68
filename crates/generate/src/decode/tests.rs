mod speculation;

use crate::SamplingConfig;
use nextword_model::{
    BiasConfig, FeedForwardKind, InitConfig, ModelConfig, NormKind, NormPlacement, Position,
    RotaryConfig,
};

use super::*;

const VOCAB: usize = 13;

/// A small model whose logits differ enough to reveal errors.
fn config(position: Position) -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        context_length: 16,
        n_layers: 2,
        n_heads: 4,
        d_model: 16,
        position,
        init: InitConfig {
            std: 0.4,
            scale_output: false,
        },
        ..ModelConfig::default()
    }
}

fn model(config: &ModelConfig) -> Transformer {
    config.init(&burn::tensor::Device::flex(), 3).unwrap()
}

fn greedy(max_tokens: usize) -> DecodeOptions {
    DecodeOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens,
        ..DecodeOptions::default()
    }
}

fn decode(model: &Transformer, prompts: &[Vec<u32>], options: DecodeOptions) -> Vec<Sequence> {
    generate_ids(model, prompts, options, |_| ControlFlow::Continue(())).unwrap()
}

fn prompt(len: u32, salt: u32) -> Vec<u32> {
    (0..len)
        .map(|i| (i * i + 3 * i + salt) % VOCAB as u32)
        .collect()
}

/// Log-probabilities after the last of `ids`, from an uncached forward pass.
fn full_forward(model: &Transformer, ids: &[u32]) -> Vec<f64> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let seq = ids.len();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, seq]), &model.device());
    let logits = weights::to_f32_vec(
        model
            .forward(tokens, &mut ForwardContext::inference())
            .into_data(),
    );
    let last: Vec<f64> = logits[(seq - 1) * VOCAB..]
        .iter()
        .map(|l| f64::from(*l))
        .collect();
    let sum: f64 = last.iter().map(|l| l.exp()).sum();
    last.iter().map(|l| l - sum.ln()).collect()
}

/// Asserts that every token of `sequence` is the greedy choice of a full forward pass over the same
/// context, with the same log-probability. Single tokens use other kernels, which round differently.
fn assert_equals_full_forward(
    model: &Transformer,
    prompt: &[u32],
    sequence: &Sequence,
    name: &str,
) {
    let context_length = model.config().context_length;
    let mut context = prompt[prompt.len().saturating_sub(context_length - 1)..].to_vec();
    let mut context_shifts = 0;
    for (at, token) in sequence.tokens.iter().enumerate() {
        if context.len() > context_length {
            context.drain(..context.len() - context_length / 2);
            context_shifts += 1;
        }
        let expected = full_forward(model, &context);
        let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let actual = expected[token.id as usize];
        assert!(
            (actual - token.logprob).abs() < 5e-4,
            "{name}, token {at}: {actual} {}",
            token.logprob
        );
        assert!(
            best - actual < 5e-4,
            "{name}, token {at} is not the most probable"
        );
        context.push(token.id);
    }
    assert_eq!(sequence.context_shifts, context_shifts, "{name}");
}

/// Every kind of position encoding, and every feature that affects the cache.
fn architectures() -> Vec<(&'static str, ModelConfig)> {
    let base = config(Position::Rotary);
    vec![
        ("learned", config(Position::Learned)),
        ("sinusoidal", config(Position::Sinusoidal)),
        ("rotary", base.clone()),
        ("alibi", config(Position::Alibi)),
        ("none", config(Position::None)),
        (
            "grouped",
            ModelConfig {
                n_kv_heads: Some(2),
                ..base.clone()
            },
        ),
        (
            "one key head",
            ModelConfig {
                n_kv_heads: Some(1),
                ..config(Position::Alibi)
            },
        ),
        (
            "window",
            ModelConfig {
                windows: vec![3, 0],
                ..base.clone()
            },
        ),
        (
            "alibi window",
            ModelConfig {
                windows: vec![4],
                ..config(Position::Alibi)
            },
        ),
        (
            "post-norm",
            ModelConfig {
                norm_placement: NormPlacement::Post,
                ..base.clone()
            },
        ),
        (
            "no norm",
            ModelConfig {
                norm: NormKind::None,
                ..config(Position::Learned)
            },
        ),
        (
            "two bases, score cap, part of each head, parallel",
            ModelConfig {
                parallel: true,
                score_soft_cap: Some(2.0),
                windows: vec![3, 0],
                rotary: RotaryConfig {
                    local_base: Some(9.0),
                    width: Some(2),
                    ..RotaryConfig::default()
                },
                ..base.clone()
            },
        ),
        (
            "llama-like",
            ModelConfig {
                norm: NormKind::Rms,
                feed_forward: FeedForwardKind::Swiglu,
                bias: BiasConfig::none(),
                tied_head: false,
                qk_norm: true,
                logit_soft_cap: Some(8.0),
                ..base
            },
        ),
    ]
}

#[test]
fn cached_decoding_equals_full_forward() {
    for (name, config) in architectures() {
        let model = model(&config);
        // Different lengths, two that are equal, one of a single token, one that fills the context.
        let prompts = [
            prompt(5, 1),
            prompt(1, 2),
            prompt(9, 4),
            prompt(5, 7),
            prompt(15, 5),
        ];
        let batch = decode(&model, &prompts, greedy(30));
        for (prompt, sequence) in prompts.iter().zip(&batch) {
            assert_eq!(sequence.tokens.len(), 30);
            assert_equals_full_forward(&model, prompt, sequence, name);
        }
    }
}

#[test]
fn a_context_shift_continues_from_the_last_half() {
    let model = model(&config(Position::Learned));
    let shifted = &decode(&model, &[prompt(10, 1)], greedy(12))[0];
    assert_eq!(shifted.context_shifts, 1);
    // 10 + 6 tokens fill the context and yield the 7th; the 8th follows the last 8 of all 17.
    let all = [prompt(10, 1), shifted.ids()].concat();
    let fresh = &decode(&model, &[all[9..17].to_vec()], greedy(5))[0];
    assert_eq!(fresh.ids(), shifted.ids()[7..]);
    for (a, b) in fresh.tokens.iter().zip(&shifted.tokens[7..]) {
        assert!((a.logprob - b.logprob).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn a_row_decodes_the_same_in_a_batch_and_alone() {
    for (name, config) in architectures() {
        let model = model(&config);
        let prompts = [prompt(2, 1), prompt(11, 2), prompt(6, 3)];
        let options = DecodeOptions {
            max_tokens: 20,
            ..DecodeOptions::default()
        };
        let batch = decode(&model, &prompts, options.clone());
        for (row, prompt) in prompts.iter().enumerate() {
            let options = DecodeOptions {
                first_sequence: row as u64,
                ..options.clone()
            };
            let alone = &decode(&model, std::slice::from_ref(prompt), options)[0];
            assert_eq!(alone.ids(), batch[row].ids(), "{name}, row {row}");
            for (a, b) in alone.tokens.iter().zip(&batch[row].tokens) {
                assert!((a.logprob - b.logprob).abs() < 1e-4, "{name}: {a:?} {b:?}");
            }
        }
    }
}

#[test]
fn rows_that_finish_early_do_not_affect_the_others() {
    let model = model(&config(Position::Rotary));
    let prompts = [prompt(3, 1), prompt(4, 2), prompt(8, 3), prompt(2, 4)];
    let full = decode(&model, &prompts, greedy(12));
    let mut counts = [0; 4];
    let partial = generate_ids(&model, &prompts, greedy(12), |token| {
        counts[token.row] += 1;
        if token.row % 2 == 0 && counts[token.row] == 3 + token.row {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    for (row, length) in [3, 12, 5, 12].into_iter().enumerate() {
        assert_eq!(partial[row].ids(), full[row].ids()[..length], "row {row}");
        let reason = if length == 12 {
            FinishReason::Length
        } else {
            FinishReason::Cancelled
        };
        assert_eq!(partial[row].finish, reason);
    }
}

#[test]
fn tokens_come_in_row_order_with_mixed_prefill() {
    let model = model(&config(Position::Rotary));
    // Rows 0 and 2 prefill beside a single token of row 1; later the rows shift at different steps.
    let prompts = [prompt(9, 1), prompt(1, 2), prompt(12, 3)];
    let mut rows = Vec::new();
    generate_ids(&model, &prompts, greedy(20), |token| {
        rows.push(token.row);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(rows, [0, 1, 2].repeat(20));
}

#[test]
fn temperature_zero_is_deterministic() {
    let model = model(&config(Position::Learned));
    let with_seed = |seed| {
        let sampling = SamplingConfig {
            seed,
            ..SamplingConfig::greedy()
        };
        decode(
            &model,
            &[prompt(4, 1)],
            DecodeOptions {
                sampling,
                ..greedy(20)
            },
        )
    };
    assert_eq!(with_seed(1), with_seed(2));
}

#[test]
fn the_seed_determines_the_text() {
    let model = model(&config(Position::Learned));
    let with_seed = |seed| {
        let sampling = SamplingConfig {
            seed,
            ..SamplingConfig::default()
        };
        decode(
            &model,
            &[prompt(4, 1)],
            DecodeOptions {
                sampling,
                ..greedy(40)
            },
        )
    };
    assert_eq!(with_seed(1), with_seed(1));
    assert_ne!(with_seed(1)[0].ids(), with_seed(2)[0].ids());
}

#[test]
fn rows_with_equal_prompts_sample_different_texts() {
    let model = model(&config(Position::Learned));
    let options = DecodeOptions {
        max_tokens: 40,
        ..DecodeOptions::default()
    };
    let both = decode(&model, &[prompt(4, 1), prompt(4, 1)], options);
    assert_ne!(both[0].ids(), both[1].ids());
}

#[test]
fn a_stop_id_is_the_last_token() {
    let model = model(&config(Position::Rotary));
    let free = decode(&model, &[prompt(4, 1)], greedy(20))[0].ids();
    let stop = free[7];
    let first = free.iter().position(|id| *id == stop).unwrap();
    let options = DecodeOptions {
        stop_ids: vec![stop],
        ..greedy(20)
    };
    let stopped = &decode(&model, &[prompt(4, 1)], options)[0];
    assert_eq!(stopped.ids(), free[..=first]);
    assert_eq!(stopped.finish, FinishReason::Eos);
}

#[test]
fn overflow_stop_ends_when_the_context_is_full() {
    let model = model(&config(Position::Rotary));
    let options = DecodeOptions {
        overflow: Overflow::Stop,
        ..greedy(100)
    };
    let sequences = decode(&model, &[prompt(10, 1), prompt(3, 1)], options);
    // 16 positions: 16 - 10 tokens fit after the prompt, and the last position still predicts one.
    assert_eq!(sequences[0].tokens.len(), 7);
    assert_eq!(sequences[1].tokens.len(), 14);
    assert!(
        sequences
            .iter()
            .all(|s| s.finish == FinishReason::ContextFull)
    );
}

#[test]
fn a_long_prompt_is_truncated_on_the_left() {
    let model = model(&config(Position::Learned));
    let long = prompt(40, 1);
    let truncated = &decode(&model, std::slice::from_ref(&long), greedy(5))[0];
    assert_eq!(truncated.truncated, 25);
    let short = &decode(&model, &[long[25..].to_vec()], greedy(5))[0];
    assert_eq!(short.truncated, 0);
    assert_eq!(truncated.ids(), short.ids());
}

#[test]
fn bos_survives_truncation_and_context_shifts() {
    let mut ids: Vec<u32> = (0..10).collect();
    assert_eq!(truncate_left(&mut ids, Some(0), 4), 6);
    assert_eq!(ids, [0, 7, 8, 9]);
    assert_eq!(truncate_left(&mut ids, Some(5), 3), 1);
    assert_eq!(ids, [7, 8, 9]);
    assert_eq!(truncate_left(&mut ids, Some(7), 1), 2);
    assert_eq!(ids, [9], "a single position keeps the newest token");

    let model = model(&config(Position::Rotary));
    let mut long = prompt(40, 1);
    long[0] = 5;
    let options = DecodeOptions {
        bos_id: Some(5),
        ..greedy(20)
    };
    let completion = &decode(&model, std::slice::from_ref(&long), options.clone())[0];
    assert_eq!(
        (completion.truncated, completion.context_shifts > 0),
        (25, true)
    );
    let short = [&[5], &long[26..]].concat();
    assert_eq!(decode(&model, &[short], options)[0].ids(), completion.ids());
    // After the first shift the context is BOS and the last seven tokens.
    let tokens = [&long[26..], &completion.ids()[..2]].concat();
    let shifted = [&[5], &tokens[tokens.len() - 7..]].concat();
    assert_eq!(
        decode(&model, &[shifted], greedy(1))[0].ids()[0],
        completion.ids()[2]
    );
}

#[test]
fn a_context_of_one_token_still_generates() {
    let model = model(&ModelConfig {
        context_length: 1,
        ..config(Position::Learned)
    });
    let sequence = &decode(&model, &[prompt(3, 1)], greedy(6))[0];
    assert_eq!(
        (
            sequence.tokens.len(),
            sequence.truncated,
            sequence.context_shifts
        ),
        (6, 2, 5)
    );
}

#[test]
fn invalid_prompts_are_errors() {
    let model = model(&config(Position::Learned));
    let fail = |prompts: &[Vec<u32>]| {
        let result = generate_ids(&model, prompts, greedy(3), |_| ControlFlow::Continue(()));
        result.unwrap_err().to_string()
    };
    let message = fail(&[vec![1], vec![2, 13]]);
    assert!(
        message.starts_with("prompt 1 contains token 13, but the model has 13 tokens (0 to 12)"),
        "{message}"
    );
    assert!(fail(&[vec![]]).starts_with("prompt 0 is empty"));
}

#[test]
fn empty_batches_and_zero_tokens_finish() {
    let model = model(&config(Position::Learned));
    assert_eq!(decode(&model, &[], greedy(3)), []);
    let sequence = &decode(&model, &[vec![1]], greedy(0))[0];
    assert_eq!(
        (sequence.tokens.len(), &sequence.finish),
        (0, &FinishReason::Length)
    );
}

#[test]
fn cache_memory_is_bounded_by_the_context() {
    let model = model(&config(Position::Learned));
    let options = DecodeOptions {
        overflow: Overflow::Stop,
        ..greedy(usize::MAX)
    };
    assert_eq!(decode(&model, &[prompt(4, 1)], options)[0].tokens.len(), 13);
}
