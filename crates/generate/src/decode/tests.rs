use nextword_model::{
    BiasConfig, FeedForwardKind, InitConfig, ModelConfig, NormKind, NormPlacement, Position,
    RotaryConfig,
};

use super::*;

const VOCAB: usize = 13;

/// A small model whose logits differ enough from one another that an error shows.
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

/// Log-probabilities after the last of `ids`, from a forward pass without a cache.
fn full_forward(model: &Transformer, ids: &[u32]) -> Vec<f64> {
    let ids: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
    let seq = ids.len();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, seq]), &model.device());
    let logits = weights::floats(model.forward(tokens, &mut Pass::plain()).into_data());
    let last: Vec<f64> = logits[(seq - 1) * VOCAB..]
        .iter()
        .map(|l| f64::from(*l))
        .collect();
    let sum: f64 = last.iter().map(|l| l.exp()).sum();
    last.iter().map(|l| l - sum.ln()).collect()
}

/// Every choice of `sequence` is the greedy one of a full forward pass over the same context,
/// with the same log-probability; one token and many take other kernels, which round otherwise.
fn assert_equals_full_forward(
    model: &Transformer,
    prompt: &[u32],
    sequence: &Sequence,
    name: &str,
) {
    let context_length = model.config().context_length;
    let mut context = prompt[prompt.len().saturating_sub(context_length - 1)..].to_vec();
    let mut slides = 0;
    for (at, token) in sequence.tokens.iter().enumerate() {
        if context.len() > context_length {
            context.drain(..context.len() - context_length / 2);
            slides += 1;
        }
        let expected = full_forward(model, &context);
        let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let chosen = expected[token.id as usize];
        assert!(
            (chosen - token.logprob).abs() < 5e-4,
            "{name}, token {at}: {chosen} {}",
            token.logprob
        );
        assert!(
            best - chosen < 5e-4,
            "{name}, token {at} is not the likeliest"
        );
        context.push(token.id);
    }
    assert_eq!(sequence.slides, slides, "{name}");
}

/// Every way of telling places, and the parts that treat cached tokens in a way of their own.
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
fn sliding_goes_on_past_the_context_as_a_fresh_prompt_of_its_last_half() {
    let model = model(&config(Position::Learned));
    let slid = &decode(&model, &[prompt(10, 1)], greedy(12))[0];
    assert_eq!(slid.slides, 1);
    // 10 + 6 tokens fill the context and give the 7th; the 8th comes from the last 8 of all 17.
    let all = [prompt(10, 1), slid.ids()].concat();
    let fresh = &decode(&model, &[all[9..17].to_vec()], greedy(5))[0];
    assert_eq!(fresh.ids(), slid.ids()[7..]);
    for (a, b) in fresh.tokens.iter().zip(&slid.tokens[7..]) {
        assert!((a.logprob - b.logprob).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn a_row_in_a_batch_says_what_it_says_alone() {
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
fn rows_that_finish_early_do_not_disturb_the_others() {
    let model = model(&config(Position::Rotary));
    let prompts = [prompt(3, 1), prompt(4, 2), prompt(8, 3), prompt(2, 4)];
    let whole = decode(&model, &prompts, greedy(12));
    let mut seen = [0; 4];
    let some = generate_ids(&model, &prompts, greedy(12), |token| {
        seen[token.row] += 1;
        if token.row % 2 == 0 && seen[token.row] == 3 + token.row {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    for (row, length) in [3, 12, 5, 12].into_iter().enumerate() {
        assert_eq!(some[row].ids(), whole[row].ids()[..length], "row {row}");
        let reason = if length == 12 {
            FinishReason::Length
        } else {
            FinishReason::Cancelled
        };
        assert_eq!(some[row].finish, reason);
    }
}

#[test]
fn tokens_come_in_the_order_of_rows_also_when_some_are_computed_alone() {
    let model = model(&config(Position::Rotary));
    // Prefills of rows 0 and 2 beside a single token of row 1; later rows slide at different steps.
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
fn same_seed_same_text_and_another_seed_another_text() {
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
fn two_rows_with_one_prompt_draw_different_texts() {
    let model = model(&config(Position::Learned));
    let options = DecodeOptions {
        max_tokens: 40,
        ..DecodeOptions::default()
    };
    let both = decode(&model, &[prompt(4, 1), prompt(4, 1)], options);
    assert_ne!(both[0].ids(), both[1].ids());
}

#[test]
fn a_stop_id_ends_the_answer_as_its_last_token() {
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
    // 16 places: 16 - 10 tokens fit behind the prompt, and the last place still predicts one.
    assert_eq!(sequences[0].tokens.len(), 7);
    assert_eq!(sequences[1].tokens.len(), 14);
    assert!(
        sequences
            .iter()
            .all(|s| s.finish == FinishReason::ContextFull)
    );
}

#[test]
fn a_long_prompt_is_cut_on_the_left_and_the_cut_is_told() {
    let model = model(&config(Position::Learned));
    let long = prompt(40, 1);
    let cut = &decode(&model, std::slice::from_ref(&long), greedy(5))[0];
    assert_eq!(cut.truncated, 25);
    let short = &decode(&model, &[long[25..].to_vec()], greedy(5))[0];
    assert_eq!(short.truncated, 0);
    assert_eq!(cut.ids(), short.ids());
}

#[test]
fn the_first_token_outlives_cuts_and_slides() {
    let mut ids: Vec<u32> = (0..10).collect();
    assert_eq!(shorten(&mut ids, Some(0), 4), 6);
    assert_eq!(ids, [0, 7, 8, 9]);
    assert_eq!(shorten(&mut ids, Some(5), 3), 1);
    assert_eq!(ids, [7, 8, 9]);
    assert_eq!(shorten(&mut ids, Some(7), 1), 2);
    assert_eq!(ids, [9], "where one token fits it is the newest");

    let model = model(&config(Position::Rotary));
    let mut long = prompt(40, 1);
    long[0] = 5;
    let options = DecodeOptions {
        first_id: Some(5),
        ..greedy(20)
    };
    let kept = &decode(&model, std::slice::from_ref(&long), options.clone())[0];
    assert_eq!((kept.truncated, kept.slides > 0), (25, true));
    let short = [&[5], &long[26..]].concat();
    assert_eq!(decode(&model, &[short], options)[0].ids(), kept.ids());
    // What follows the first slide is what the first token and the last seven continue to.
    let seen = [&long[26..], &kept.ids()[..2]].concat();
    let anew = [&[5], &seen[seen.len() - 7..]].concat();
    assert_eq!(
        decode(&model, &[anew], greedy(1))[0].ids()[0],
        kept.ids()[2]
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
        (sequence.tokens.len(), sequence.truncated, sequence.slides),
        (6, 2, 5)
    );
}

#[test]
fn prompts_that_cannot_be_read_are_errors_and_no_panic() {
    let model = model(&config(Position::Learned));
    let fail = |prompts: &[Vec<u32>]| {
        let result = generate_ids(&model, prompts, greedy(3), |_| ControlFlow::Continue(()));
        result.unwrap_err().to_string()
    };
    let message = fail(&[vec![1], vec![2, 13]]);
    assert!(
        message.starts_with("prompt 1 holds token 13, but the model has 13 tokens (0 to 12)"),
        "{message}"
    );
    assert!(fail(&[vec![]]).starts_with("prompt 0 holds no token"));
}

#[test]
fn nothing_to_do_is_done() {
    let model = model(&config(Position::Learned));
    assert_eq!(decode(&model, &[], greedy(3)), []);
    let sequence = &decode(&model, &[vec![1]], greedy(0))[0];
    assert_eq!(
        (sequence.tokens.len(), &sequence.finish),
        (0, &FinishReason::Length)
    );
}

#[test]
fn the_largest_token_limit_takes_no_more_memory_than_the_context() {
    let model = model(&config(Position::Learned));
    let options = DecodeOptions {
        overflow: Overflow::Stop,
        ..greedy(usize::MAX)
    };
    assert_eq!(decode(&model, &[prompt(4, 1)], options)[0].tokens.len(), 13);
}
