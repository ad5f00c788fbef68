mod adapters;
mod architectures;
mod paging;
mod speculation;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{Device, Int, Tensor, TensorData};
use nextword_model::{CounterRng, ForwardContext, InitConfig, ModelConfig, Position};

use super::*;
use crate::SamplingConfig;
use crate::sampler::log_sum_exp;
use crate::{DecodeOptions, generate_ids};

const VOCAB: u32 = 97;

fn model(position: Position) -> Transformer {
    let config = ModelConfig {
        vocab_size: VOCAB as usize,
        context_length: 64,
        n_layers: 2,
        n_heads: 4,
        d_model: 64,
        position,
        init: InitConfig {
            std: 0.3,
            scale_output: false,
        },
        ..ModelConfig::default()
    };
    config.init(&Device::flex(), 3).unwrap()
}

fn batcher(slots: usize) -> Batcher {
    let options = BatchOptions {
        slots,
        chunk: 8,
        prefill_tokens: 16,
        ..BatchOptions::default()
    };
    Batcher::new(model(Position::Learned), options)
}

fn ids(len: usize, salt: u64) -> Vec<u32> {
    let rng = CounterRng::new(salt).named("prompt");
    (0..len as u64)
        .map(|at| (rng.at(at) % u64::from(VOCAB)) as u32)
        .collect()
}

fn request(prompt: Vec<u32>, seed: u64) -> BatchRequest {
    BatchRequest {
        min_tokens: 0,
        prompt,
        sampling: SamplingConfig {
            seed,
            ..SamplingConfig::default()
        },
        max_tokens: 12,
        stop_ids: Vec::new(),
        overflow: Overflow::Stop,
        bos_id: None,
        sequence: 0,
        top_logprobs: Some(3),
        score_prompt: false,
        adapter: None,
    }
}

/// The output of a request, bit for bit.
#[derive(Debug, Default, PartialEq)]
struct Output {
    prompt: Vec<(u32, u64)>,
    tokens: Vec<(u32, u64, Vec<u32>)>,
    finish: Option<FinishReason>,
}

impl Output {
    fn push(&mut self, event: Event) {
        let entry = |score: Score| {
            let top = score.top.iter().map(|(id, _)| *id).collect();
            (score.id, score.logprob.to_bits(), top)
        };
        match event {
            Event::Prompt(scores) => {
                self.prompt = scores.iter().map(|s| (s.id, s.logprob.to_bits())).collect();
            }
            Event::Token { score, finish, .. } => {
                self.tokens.push(entry(score.unwrap()));
                self.finish = finish;
            }
            Event::End(finish) => self.finish = Some(finish),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

fn run(batcher: &mut Batcher, request: BatchRequest) -> Output {
    let id = batcher.admit(request).unwrap().unwrap();
    let mut output = Output::default();
    while !batcher.is_idle() {
        for (request, event) in batcher.step() {
            if request == id {
                output.push(event);
            }
        }
    }
    output
}

#[test]
fn a_request_is_bitwise_equal_alone_and_under_load() {
    let requests: Vec<BatchRequest> = (0..40)
        .map(|n| request(ids(1 + (n * 7) as usize % 45, n % 13), n))
        .collect();
    let alone: Vec<Output> = requests
        .iter()
        .map(|r| run(&mut batcher(1), r.clone()))
        .collect();

    let mut batcher = batcher(13);
    let mut output: BTreeMap<RequestId, (usize, Output)> = BTreeMap::new();
    let mut waiting: Vec<(usize, BatchRequest)> = requests.into_iter().enumerate().rev().collect();
    let (mut steps, mut max_active) = (0_usize, 0);
    while !(waiting.is_empty() && batcher.is_idle()) {
        steps += 1;
        // Requests arrive unevenly, and some others are cancelled before they end.
        for _ in 0..(steps * 5) % 4 {
            let Some((number, request)) = waiting.pop() else {
                break;
            };
            match batcher.admit(request.clone()).unwrap() {
                Some(id) => drop(output.insert(id, (number, Output::default()))),
                None => waiting.push((number, request)),
            }
        }
        if steps.is_multiple_of(3)
            && let Ok(Some(other)) = batcher.admit(request(ids(20, 99), 1))
        {
            let _ = batcher
                .step()
                .into_iter()
                .map(|(id, event)| {
                    if let Some((_, output)) = output.get_mut(&id) {
                        output.push(event);
                    }
                })
                .count();
            batcher.cancel(other);
        }
        max_active = max_active.max(13 - batcher.free_slots());
        for (id, event) in batcher.step() {
            if let Some((_, output)) = output.get_mut(&id) {
                output.push(event);
            }
        }
    }
    assert!(max_active > 10, "only {max_active} at once: no load");
    assert_eq!(output.len(), alone.len());
    for (number, output) in output.values() {
        assert_eq!(output, &alone[*number], "request {number}");
    }
}

#[test]
fn prefix_reuse_is_bitwise_exact() {
    let shared = ids(30, 5);
    let with = |end: &[u32]| [&shared[..], end].concat();
    let fresh = run(&mut batcher(1), request(with(&[1, 2, 3]), 7));

    let mut one = batcher(1);
    run(&mut one, request(with(&[9]), 1));
    let id = one.admit(request(with(&[1, 2, 3]), 7)).unwrap().unwrap();
    assert_eq!(one.cached_tokens(id), 24, "three whole chunks of 8");
    one.cancel(id);
    assert_eq!(run(&mut one, request(with(&[1, 2, 3]), 7)), fresh);

    // The other request is still active in another slot: its tokens are copied.
    let mut two = batcher(2);
    let first = two.admit(request(with(&[9]), 1)).unwrap().unwrap();
    for _ in 0..3 {
        two.step();
    }
    let id = two.admit(request(with(&[1, 2, 3]), 7)).unwrap().unwrap();
    assert_eq!(two.cached_tokens(id), 24);
    let mut output = Output::default();
    while !two.is_idle() {
        for (request, event) in two.step() {
            if request == id {
                output.push(event);
            }
        }
        two.cancel(first);
    }
    assert_eq!(output, fresh);
}

#[test]
fn cancelling_frees_the_slot_immediately() {
    let mut batcher = batcher(2);
    let a = batcher.admit(request(ids(40, 1), 1)).unwrap().unwrap();
    let b = batcher.admit(request(ids(3, 2), 1)).unwrap().unwrap();
    assert!(batcher.admit(request(ids(3, 3), 1)).unwrap().is_none());
    batcher.cancel(a); // before its prompt is computed
    assert_eq!(batcher.free_slots(), 1);
    batcher.step();
    batcher.cancel(b);
    assert!(batcher.is_idle() && batcher.step().is_empty());
}

#[test]
fn a_batch_equals_the_decoder_past_the_context() {
    for position in [Position::Learned, Position::Rotary, Position::Alibi] {
        let model = model(position);
        let prompts = [ids(5, 1), ids(40, 2), ids(60, 3)];
        let options = DecodeOptions {
            sampling: SamplingConfig::greedy(),
            max_tokens: 50,
            overflow: Overflow::Slide,
            bos_id: Some(prompts[1][0]),
            ..DecodeOptions::default()
        };
        let expected =
            generate_ids(&model, &prompts, options, |_| ControlFlow::Continue(())).unwrap();
        assert!(expected[2].context_shifts > 0);
        let options = BatchOptions {
            slots: 5,
            chunk: 8,
            prefill_tokens: 8,
            ..BatchOptions::default()
        };
        let mut batcher = Batcher::new(model, options);
        let mut output = BTreeMap::new();
        let mut fillers = Vec::new();
        for (row, prompt) in prompts.into_iter().enumerate() {
            let request = BatchRequest {
                sampling: SamplingConfig::greedy(),
                max_tokens: 50,
                overflow: Overflow::Slide,
                bos_id: Some(ids(40, 2)[0]),
                ..request(prompt, 0)
            };
            output.insert(
                batcher.admit(request.clone()).unwrap().unwrap(),
                (row, Vec::new()),
            );
            // Leave gaps between the slots.
            let gap = BatchRequest {
                prompt: vec![1],
                ..request
            };
            fillers.extend(batcher.admit(gap).unwrap());
        }
        for id in fillers {
            batcher.cancel(id);
        }
        while !batcher.is_idle() {
            for (id, event) in batcher.step() {
                if let Event::Token { id: token, .. } = event {
                    output.get_mut(&id).unwrap().1.push(token);
                }
            }
        }
        for (row, tokens) in output.values() {
            assert_eq!(tokens, &expected[*row].ids(), "{position:?} row {row}");
        }
    }
}

#[test]
fn a_scored_prompt_equals_a_forward_pass() {
    let prompt = ids(21, 4);
    let mut batcher = batcher(1);
    run(&mut batcher, request(prompt.clone(), 1)); // must not be reused
    let scored = BatchRequest {
        max_tokens: 0,
        score_prompt: true,
        ..request(prompt.clone(), 1)
    };
    let output = run(&mut batcher, scored);
    assert_eq!(output.finish, Some(FinishReason::Length));
    assert!(output.tokens.is_empty());
    let signed: Vec<i32> = prompt.iter().map(|id| id.cast_signed()).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(signed, [1, 21]), &Device::flex());
    let all = logits(
        &batcher.model,
        batcher
            .model
            .hidden_states(tokens, &mut ForwardContext::inference()),
    );
    assert_eq!(output.prompt.len(), 20);
    for (position, (id, logprob)) in output.prompt.iter().enumerate() {
        let row = &all[position * VOCAB as usize..(position + 1) * VOCAB as usize];
        let expected = f64::from(row[*id as usize]) - log_sum_exp(row);
        assert_eq!(*id, prompt[position + 1]);
        assert!(
            (f64::from_bits(*logprob) - expected).abs() < 1e-4,
            "position {position}"
        );
    }
}

#[test]
fn invalid_requests_are_rejected() {
    let mut batcher = batcher(1);
    let rejection = |batcher: &mut Batcher, prompt: Vec<u32>| {
        batcher.admit(request(prompt, 0)).unwrap_err().to_string()
    };
    assert!(rejection(&mut batcher, ids(65, 1)).contains("65 tokens"));
    assert!(rejection(&mut batcher, vec![VOCAB]).contains("token 97"));
    assert!(rejection(&mut batcher, Vec::new()).contains("is empty"));
    assert_eq!(batcher.free_slots(), 1);
}

#[test]
fn a_paused_request_resumes_bitwise() {
    let run = |paused_steps: std::ops::Range<usize>| {
        let mut batcher = batcher(2);
        let id = batcher.admit(request(ids(20, 1), 5)).unwrap().unwrap();
        let other = BatchRequest {
            max_tokens: 100,
            overflow: Overflow::Slide,
            ..request(ids(9, 2), 6)
        };
        batcher.admit(other).unwrap();
        let mut output = Output::default();
        for step in 0..60 {
            batcher.set_paused(id, paused_steps.contains(&step));
            for (request, event) in batcher.step() {
                if request == id {
                    assert!(!paused_steps.contains(&step), "a token while paused");
                    output.push(event);
                }
            }
        }
        output
    };
    let unpaused = run(0..0);
    assert_eq!(unpaused.tokens.len(), 12);
    assert_eq!(run(0..7), unpaused);
    assert_eq!(run(4..30), unpaused);
}
