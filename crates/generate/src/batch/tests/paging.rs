//! Shared pages, eviction and preemption.

use nextword_model::CachePrecision;

use super::*;

/// Chunks of two pages.
pub(super) fn paged(slots: usize, cache_tokens: usize, model: Transformer) -> Batcher {
    let options = BatchOptions {
        slots,
        chunk: 32,
        prefill_tokens: 32,
        cache_tokens: Some(cache_tokens),
        ..BatchOptions::default()
    };
    Batcher::new(model, options)
}

pub(super) fn long_model(position: Position, windows: Vec<usize>) -> Transformer {
    let config = ModelConfig {
        context_length: 128,
        n_kv_heads: Some(2),
        windows,
        ..model(position).config().clone()
    };
    config.init(&Device::flex(), 3).unwrap()
}

fn models() -> Vec<Transformer> {
    vec![
        long_model(Position::Rotary, Vec::new()),
        long_model(Position::Alibi, Vec::new()),
        long_model(Position::Rotary, vec![20, 0]),
    ]
}

/// Runs `requests`, which arrive in steps of one, until all have ended.
pub(super) fn run_all(batcher: &mut Batcher, requests: &[BatchRequest]) -> Vec<Output> {
    let mut outputs = BTreeMap::new();
    let mut waiting = requests.iter();
    let mut next = waiting.next();
    let mut steps = 0;
    while next.is_some() || !batcher.is_idle() {
        if let Some(request) = next
            && batcher.can_admit(request)
        {
            let id = batcher.admit(request.clone()).unwrap().unwrap();
            outputs.insert(id, Output::default());
            next = waiting.next();
        }
        for (id, event) in batcher.step() {
            outputs.get_mut(&id).unwrap().push(event);
        }
        steps += 1;
        assert!(steps < 20_000, "no progress");
    }
    outputs.into_values().collect()
}

#[test]
fn preempted_sequences_generate_the_same_tokens() {
    for model in models() {
        let requests: Vec<BatchRequest> = (0..14)
            .map(|n| BatchRequest {
                max_tokens: 20 + 11 * (n as usize % 9),
                overflow: if n % 3 == 0 {
                    Overflow::Slide
                } else {
                    Overflow::Stop
                },
                score_prompt: n % 5 == 4,
                ..request(ids(1 + (n as usize * 17) % 70, n % 4), n)
            })
            .collect();
        let alone: Vec<Output> = requests
            .iter()
            .map(|r| run_all(&mut paged(1, 128, model.clone()), std::slice::from_ref(r)).remove(0))
            .collect();
        for cache_tokens in [128, 200, 400] {
            let mut batcher = paged(8, cache_tokens, model.clone());
            assert_eq!(run_all(&mut batcher, &requests), alone, "{cache_tokens}");
            let usage = batcher.cache_usage();
            assert!(usage.preemptions > 0, "{cache_tokens}: no load");
            assert_eq!(usage.used, 0, "{cache_tokens}: pages are left");
            assert_eq!(usage.cached + usage.free, cache_tokens / 16);
        }
    }
}

#[test]
fn a_prefix_of_any_length_is_reused_exactly() {
    for model in models() {
        let has_windows = !model.config().windows.is_empty();
        let shared = ids(70, 5);
        let mut reused = Vec::new();
        for common in [15, 16, 20, 31, 32, 33, 47, 48, 63, 64, 70] {
            for rest in [1, 2, 9, 12, 20, 40] {
                let prompt = [&shared[..common], &ids(rest, 6)].concat();
                let new = || paged(2, 256, model.clone());
                let fresh = run(&mut new(), request(prompt.clone(), 7));
                let mut warm = new();
                run(&mut warm, request([&shared[..common], &[1]].concat(), 1));
                let id = warm.admit(request(prompt.clone(), 7)).unwrap().unwrap();
                let cached = warm.cached_tokens(id);
                assert!(cached <= common && cached < prompt.len());
                assert!(!has_windows || cached.is_multiple_of(32));
                assert!(cached >= common / 32 * 32, "{common} + {rest}: {cached}");
                reused.push(cached);
                warm.cancel(id);
                assert_eq!(
                    run(&mut warm, request(prompt, 7)),
                    fresh,
                    "{common} + {rest}"
                );
            }
        }
        assert_eq!(reused.contains(&16), !has_windows, "half a chunk");
    }
}

#[test]
fn twenty_shared_tokens_of_32_save_a_page() {
    let mut batcher = paged(4, 512, models().remove(0));
    let prompt = |salt| [&ids(20, 1)[..], &ids(12, salt)].concat();
    run(&mut batcher, request(prompt(2), 1));
    let id = batcher.admit(request(prompt(3), 2)).unwrap().unwrap();
    assert_eq!(batcher.cached_tokens(id), 16);
}

#[test]
fn running_sequences_share_the_pages_of_a_prefix() {
    let mut batcher = paged(4, 512, models().remove(0));
    let prompt = |salt| [&ids(64, 1)[..], &ids(5, salt)].concat();
    for n in 0..4 {
        // All are admitted before the first is computed.
        batcher.admit(request(prompt(n), n)).unwrap().unwrap();
    }
    assert_eq!(batcher.cache_usage().used, 4 * 5);
    while !batcher.active.values().all(|s| s.generated > 0) {
        batcher.step();
    }
    assert_eq!(batcher.cache_usage().used, 4 + 4, "four pages in common");
}

#[test]
fn the_least_recently_used_prefix_is_evicted_first() {
    let mut batcher = paged(2, 128, models().remove(0));
    let prompt = |salt| ids(33, salt);
    let cached = |batcher: &mut Batcher, salt| {
        let id = batcher.admit(request(prompt(salt), 1)).unwrap().unwrap();
        let tokens = batcher.cached_tokens(id);
        while !batcher.is_idle() {
            batcher.step();
        }
        tokens
    };
    // Eight pages: two for each prefix, and one while a sequence runs.
    assert_eq!([1, 2, 3].map(|salt| cached(&mut batcher, salt)), [0; 3]);
    assert_eq!(cached(&mut batcher, 1), 32);
    assert_eq!(cached(&mut batcher, 4), 0); // Evicts the last page of prompt 2.
    assert_eq!(cached(&mut batcher, 1), 32);
    assert_eq!(cached(&mut batcher, 3), 32);
    assert_eq!(cached(&mut batcher, 2), 16);
}

#[test]
fn a_cache_of_any_size_serves_a_whole_context() {
    let mut batcher = paged(3, 1, models().remove(0));
    assert_eq!(batcher.cache_usage().free, 128 / 16);
    let request = BatchRequest {
        max_tokens: 200,
        ..request(ids(128, 1), 1)
    };
    let output = run(&mut batcher, request);
    assert_eq!(output.finish, Some(FinishReason::ContextFull));
    assert_eq!(output.tokens.len(), 1);
}

#[test]
fn paused_sequences_do_not_block_others_for_ever() {
    let mut batcher = paged(2, 128, models().remove(0));
    let long = |seed| BatchRequest {
        max_tokens: 80,
        ..request(ids(30, seed), seed)
    };
    let first = batcher.admit(long(1)).unwrap().unwrap();
    let second = batcher.admit(long(2)).unwrap().unwrap();
    // Both grow until the second one is preempted.
    while batcher.cache_usage().preemptions == 0 {
        batcher.step();
    }
    batcher.set_paused(first, true);
    let mut tokens = 0;
    for _ in 0..200 {
        let events = batcher.step();
        tokens += events.iter().filter(|(id, _)| *id == second).count();
    }
    assert!(tokens > 10, "{tokens} tokens");
    batcher.set_paused(first, false);
    let mut finished = 0;
    for _ in 0..200 {
        let events = batcher.step();
        finished += events.iter().filter(|(id, _)| *id == first).count();
    }
    assert!(finished > 10 && batcher.is_idle());
}

#[test]
fn requests_over_8_bit_pages_are_bitwise_equal_alone_and_under_load() {
    let run = |slots, cache_tokens, requests: &[BatchRequest]| {
        let options = BatchOptions {
            slots,
            chunk: 32,
            prefill_tokens: 32,
            cache_tokens: Some(cache_tokens),
            cache_precision: CachePrecision::Int8,
            start_id: 0,
        };
        run_all(&mut Batcher::new(models().remove(0), options), requests)
    };
    let requests: Vec<BatchRequest> = (0..10)
        .map(|n| request(ids(20 + (n as usize * 17) % 60, n % 3), n))
        .collect();
    let alone: Vec<Output> = requests
        .iter()
        .map(|request| run(1, 128, std::slice::from_ref(request)).remove(0))
        .collect();
    assert_eq!(run(8, 256, &requests), alone);
}
