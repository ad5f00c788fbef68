use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::Device;
use nextword_model::{CounterRng, InitConfig, ModelConfig, Position};

use super::*;
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
        prompt,
        sampling: SamplingConfig {
            seed,
            ..SamplingConfig::default()
        },
        max_tokens: 12,
        stop_ids: Vec::new(),
        overflow: Overflow::Stop,
        first_id: None,
        sequence: 0,
        top: Some(3),
        score_prompt: false,
    }
}

/// What a request was given, to the bit.
#[derive(Debug, Default, PartialEq)]
struct Given {
    prompt: Vec<(u32, u64)>,
    tokens: Vec<(u32, u64, Vec<u32>)>,
    finish: Option<FinishReason>,
}

impl Given {
    fn take(&mut self, event: Event) {
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

fn run(batcher: &mut Batcher, request: BatchRequest) -> Given {
    let id = batcher.admit(request).unwrap().unwrap();
    let mut given = Given::default();
    while !batcher.is_idle() {
        for (of, event) in batcher.step() {
            if of == id {
                given.take(event);
            }
        }
    }
    given
}

#[test]
fn a_request_gets_the_same_bits_alone_and_under_load() {
    let requests: Vec<BatchRequest> = (0..40)
        .map(|n| request(ids(1 + (n * 7) as usize % 45, n % 13), n))
        .collect();
    let alone: Vec<Given> = requests
        .iter()
        .map(|r| run(&mut batcher(1), r.clone()))
        .collect();

    let mut batcher = batcher(13);
    let mut given: BTreeMap<RequestId, (usize, Given)> = BTreeMap::new();
    let mut waiting: Vec<(usize, BatchRequest)> = requests.into_iter().enumerate().rev().collect();
    let (mut steps, mut most) = (0_usize, 0);
    while !(waiting.is_empty() && batcher.is_idle()) {
        steps += 1;
        // They come unevenly, and some strangers leave before they are done.
        for _ in 0..(steps * 5) % 4 {
            let Some((number, request)) = waiting.pop() else {
                break;
            };
            match batcher.admit(request.clone()).unwrap() {
                Some(id) => drop(given.insert(id, (number, Given::default()))),
                None => waiting.push((number, request)),
            }
        }
        if steps.is_multiple_of(3)
            && let Ok(Some(stranger)) = batcher.admit(request(ids(20, 99), 1))
        {
            let _ = batcher
                .step()
                .into_iter()
                .map(|(id, event)| {
                    if let Some((_, given)) = given.get_mut(&id) {
                        given.take(event);
                    }
                })
                .count();
            batcher.cancel(stranger);
        }
        most = most.max(13 - batcher.free_slots());
        for (id, event) in batcher.step() {
            if let Some((_, given)) = given.get_mut(&id) {
                given.take(event);
            }
        }
    }
    assert!(most > 10, "only {most} at once: no load");
    assert_eq!(given.len(), alone.len());
    for (number, given) in given.values() {
        assert_eq!(given, &alone[*number], "request {number}");
    }
}

#[test]
fn cached_tokens_of_another_request_change_no_bit() {
    let shared = ids(30, 5);
    let with = |end: &[u32]| [&shared[..], end].concat();
    let fresh = run(&mut batcher(1), request(with(&[1, 2, 3]), 7));

    let mut one = batcher(1);
    run(&mut one, request(with(&[9]), 1));
    let id = one.admit(request(with(&[1, 2, 3]), 7)).unwrap().unwrap();
    assert_eq!(one.reused(id), 24, "three whole pieces of 8");
    one.cancel(id);
    assert_eq!(run(&mut one, request(with(&[1, 2, 3]), 7)), fresh);

    // The other request is still under way in another slot: its tokens are copied.
    let mut two = batcher(2);
    let first = two.admit(request(with(&[9]), 1)).unwrap().unwrap();
    for _ in 0..3 {
        two.step();
    }
    let id = two.admit(request(with(&[1, 2, 3]), 7)).unwrap().unwrap();
    assert_eq!(two.reused(id), 24);
    let mut given = Given::default();
    while !two.is_idle() {
        for (of, event) in two.step() {
            if of == id {
                given.take(event);
            }
        }
        two.cancel(first);
    }
    assert_eq!(given, fresh);
}

#[test]
fn a_cancelled_request_leaves_its_slot_at_once() {
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
fn a_batch_continues_as_the_decoder_does_also_past_the_context() {
    for position in [Position::Learned, Position::Rotary, Position::Alibi] {
        let model = model(position);
        let prompts = [ids(5, 1), ids(40, 2), ids(60, 3)];
        let options = DecodeOptions {
            sampling: SamplingConfig::greedy(),
            max_tokens: 50,
            overflow: Overflow::Slide,
            first_id: Some(prompts[1][0]),
            ..DecodeOptions::default()
        };
        let expected =
            generate_ids(&model, &prompts, options, |_| ControlFlow::Continue(())).unwrap();
        assert!(expected[2].slides > 0);
        let options = BatchOptions {
            slots: 5,
            chunk: 8,
            prefill_tokens: 8,
        };
        let mut batcher = Batcher::new(model, options);
        let mut given = BTreeMap::new();
        let mut free = Vec::new();
        for (row, prompt) in prompts.into_iter().enumerate() {
            let request = BatchRequest {
                sampling: SamplingConfig::greedy(),
                max_tokens: 50,
                overflow: Overflow::Slide,
                first_id: Some(ids(40, 2)[0]),
                ..request(prompt, 0)
            };
            given.insert(
                batcher.admit(request.clone()).unwrap().unwrap(),
                (row, Vec::new()),
            );
            // Slots that are no neighbours.
            let gap = BatchRequest {
                prompt: vec![1],
                ..request
            };
            free.extend(batcher.admit(gap).unwrap());
        }
        for id in free {
            batcher.cancel(id);
        }
        while !batcher.is_idle() {
            for (id, event) in batcher.step() {
                if let Event::Token { id: token, .. } = event {
                    given.get_mut(&id).unwrap().1.push(token);
                }
            }
        }
        for (row, tokens) in given.values() {
            assert_eq!(tokens, &expected[*row].ids(), "{position:?} row {row}");
        }
    }
}

#[test]
fn a_scored_prompt_equals_a_forward_pass() {
    let prompt = ids(21, 4);
    let mut batcher = batcher(1);
    run(&mut batcher, request(prompt.clone(), 1)); // nothing of this may be used
    let scored = BatchRequest {
        max_tokens: 0,
        score_prompt: true,
        ..request(prompt.clone(), 1)
    };
    let given = run(&mut batcher, scored);
    assert_eq!(given.finish, Some(FinishReason::Length));
    assert!(given.tokens.is_empty());
    let signed: Vec<i32> = prompt.iter().map(|id| id.cast_signed()).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(signed, [1, 21]), &Device::flex());
    let all = logits(
        &batcher.model,
        batcher.model.hidden(tokens, &mut Pass::plain()),
    );
    assert_eq!(given.prompt.len(), 20);
    for (place, (id, logprob)) in given.prompt.iter().enumerate() {
        let row = &all[place * VOCAB as usize..(place + 1) * VOCAB as usize];
        let expected = f64::from(row[*id as usize]) - log_sum_exp(row);
        assert_eq!(*id, prompt[place + 1]);
        assert!(
            (f64::from_bits(*logprob) - expected).abs() < 1e-4,
            "place {place}"
        );
    }
}

#[test]
fn what_the_model_cannot_read_is_refused() {
    let mut batcher = batcher(1);
    let refusal = |batcher: &mut Batcher, prompt: Vec<u32>| {
        batcher.admit(request(prompt, 0)).unwrap_err().to_string()
    };
    assert!(refusal(&mut batcher, ids(65, 1)).contains("65 tokens"));
    assert!(refusal(&mut batcher, vec![VOCAB]).contains("token 97"));
    assert!(refusal(&mut batcher, Vec::new()).contains("no token"));
    assert_eq!(batcher.free_slots(), 1);
}

#[test]
fn a_held_request_waits_and_goes_on_as_if_it_had_not() {
    let run = |held_steps: std::ops::Range<usize>| {
        let mut batcher = batcher(2);
        let id = batcher.admit(request(ids(20, 1), 5)).unwrap().unwrap();
        let other = BatchRequest {
            max_tokens: 100,
            overflow: Overflow::Slide,
            ..request(ids(9, 2), 6)
        };
        batcher.admit(other).unwrap();
        let mut given = Given::default();
        for step in 0..60 {
            batcher.hold(id, held_steps.contains(&step));
            for (of, event) in batcher.step() {
                if of == id {
                    assert!(!held_steps.contains(&step), "a token while it is held");
                    given.take(event);
                }
            }
        }
        given
    };
    let free = run(0..0);
    assert_eq!(free.tokens.len(), 12);
    assert_eq!(run(0..7), free);
    assert_eq!(run(4..30), free);
}
