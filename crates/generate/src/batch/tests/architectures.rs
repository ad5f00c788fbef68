//! Prefix models, whose prompts are bidirectional, and encoder-decoder models, which read them with an encoder.

use nextword_model::Architecture;

use super::paging::{paged, run_all};
use super::*;

const OTHERS: [Architecture; 2] = [Architecture::Prefix, Architecture::EncoderDecoder];

fn of(architecture: Architecture) -> Transformer {
    let config = ModelConfig {
        architecture,
        context_length: 128,
        ..model(Position::Learned).config().clone()
    };
    config.init(&Device::flex(), 3).unwrap()
}

/// Requests with prompts of several lengths, up to some that are longer than the budget of a step.
fn requests() -> Vec<BatchRequest> {
    (0..10)
        .map(|n| BatchRequest {
            max_tokens: 8 + 13 * (n as usize % 5),
            overflow: if n % 3 == 0 {
                Overflow::Slide
            } else {
                Overflow::Stop
            },
            ..request(ids(1 + (n as usize * 23) % 110, n % 4), n)
        })
        .collect()
}

#[test]
fn requests_do_not_depend_on_others_or_on_lost_pages() {
    let mut preemptions = 0;
    for architecture in OTHERS {
        let (model, requests) = (of(architecture), requests());
        let alone: Vec<Output> = requests
            .iter()
            .map(|r| run_all(&mut paged(1, 128, model.clone()), std::slice::from_ref(r)).remove(0))
            .collect();
        assert_eq!(alone.len(), 10);
        for cache_tokens in [128, 1024] {
            let mut batcher = paged(8, cache_tokens, model.clone());
            let together = run_all(&mut batcher, &requests);
            assert_eq!(together, alone, "{architecture}, {cache_tokens}");
            let usage = batcher.cache_usage();
            assert_eq!(usage.cached, 0, "{architecture}: no page is shared");
            preemptions += usage.preemptions;
        }
    }
    assert!(preemptions > 0, "no load");
}

#[test]
fn a_batch_generates_what_a_decoder_does() {
    for architecture in OTHERS {
        let model = of(architecture);
        for length in [3, 20, 70] {
            let greedy = BatchRequest {
                sampling: SamplingConfig::greedy(),
                ..request(ids(length, 2), 0)
            };
            let options = DecodeOptions {
                sampling: SamplingConfig::greedy(),
                max_tokens: greedy.max_tokens,
                ..DecodeOptions::default()
            };
            let prompts = [greedy.prompt.clone()];
            let expected =
                generate_ids(&model, &prompts, options, |_| ControlFlow::Continue(())).unwrap();
            let output = run(&mut paged(2, 256, model.clone()), greedy);
            let tokens: Vec<u32> = output.tokens.iter().map(|(id, ..)| *id).collect();
            assert_eq!(tokens, expected[0].ids(), "{architecture}, {length}");
        }
    }
}

#[test]
fn every_token_of_a_prompt_depends_on_its_end() {
    // Of a decoder, only the tokens from the change on would.
    for architecture in OTHERS {
        let model = of(architecture);
        let first = |last: u32| {
            let prompt = [ids(20, 2), vec![last]].concat();
            run(&mut paged(1, 128, model.clone()), request(prompt, 0)).tokens[0].1
        };
        assert_ne!(first(3), first(4), "{architecture}");
    }
}

#[test]
fn a_target_ends_at_the_context() {
    let model = of(Architecture::EncoderDecoder);
    let long = BatchRequest {
        max_tokens: 1000,
        overflow: Overflow::Slide,
        ..request(ids(100, 1), 1)
    };
    let output = run(&mut paged(1, 128, model), long);
    assert_eq!(output.tokens.len(), 128);
    assert_eq!(output.finish, Some(FinishReason::ContextFull));
}

#[test]
fn what_an_architecture_cannot_do_is_an_error() {
    let error = |architecture, score_prompt| {
        let request = BatchRequest {
            score_prompt,
            ..request(ids(3, 1), 0)
        };
        let admitted = paged(1, 128, of(architecture)).admit(request);
        admitted.unwrap_err().to_string()
    };
    assert!(error(Architecture::Encoder, false).contains("nextword fill"));
    for architecture in OTHERS {
        let message = error(architecture, true);
        assert!(message.contains("does not predict its prompt"), "{message}");
    }
}
