//! Requests with adapters of their own.

use nextword_model::{CounterRng, LoraConfig, RowAdapter};

use super::paging::{long_model, paged, run_all};
use super::*;
use crate::Speculation;

/// `model` with an adapter of values that depend on `seed`.
fn adapted(model: &Transformer, seed: u64) -> Transformer {
    let config = LoraConfig {
        rank: 3 + seed as usize,
        ..LoraConfig::default()
    };
    let new = model.clone().with_new_adapter(&config, seed).unwrap();
    let mut adapter = new.adapter().unwrap();
    let rng = CounterRng::new(seed).named("b");
    for (number, module) in adapter.modules.values_mut().enumerate() {
        let rng = rng.stream(number as u64);
        for (i, value) in module.b.iter_mut().enumerate() {
            *value = 0.1 * rng.normal(i as u64) as f32;
        }
    }
    model.clone().with_adapter(&adapter).unwrap()
}

/// Three adapters of `model`.
fn adapters(model: &Transformer) -> Vec<RowAdapter> {
    let adapters = (1..=3).map(|seed| adapted(model, seed).row_adapter().unwrap());
    adapters.collect()
}

/// Prompts that share beginnings, each with the base, one of three adapters, or half of one.
fn requests(model: &Transformer) -> Vec<BatchRequest> {
    let adapters = adapters(model);
    let adapter = |n: u64| match n % 5 {
        0 => None,
        4 => Some(adapters[0].clone().with_factor(0.5)),
        number => Some(adapters[number as usize - 1].clone()),
    };
    let request = |n: u64| BatchRequest {
        adapter: adapter(n),
        max_tokens: 1 + (n as usize * 13) % 80,
        ..request(
            [ids(24, 1), ids(1 + (n as usize * 7) % 20, n % 4)].concat(),
            n,
        )
    };
    (0..30).map(request).collect()
}

#[test]
fn requests_with_adapters_have_the_same_bits_alone_and_under_load() {
    let model = long_model(Position::Rotary, Vec::new());
    let requests = requests(&model);
    let alone = |request: &BatchRequest| run(&mut paged(1, 128, model.clone()), request.clone());
    let alone: Vec<Output> = requests.iter().map(alone).collect();
    // Enough memory for all, and so little that sequences are preempted.
    for (slots, cache_tokens) in [(20, 4000), (8, 128)] {
        let mut batcher = paged(slots, cache_tokens, model.clone());
        assert!(run_all(&mut batcher, &requests) == alone, "{slots} slots");
        assert_eq!(batcher.cache_usage().preemptions > 0, cache_tokens == 128);
    }
    let speculation = Speculation::PromptLookup { max_tokens: 6 };
    let batcher = paged(8, 600, model.clone());
    let mut batcher = batcher.with_speculation(&speculation).unwrap();
    assert!(run_all(&mut batcher, &requests) == alone, "speculative");
    let draft = Speculation::Draft {
        model: Box::new(model.clone()),
        max_tokens: 4,
    };
    let mut batcher = paged(8, 600, model).with_speculation(&draft).unwrap();
    assert!(
        run_all(&mut batcher, &requests) == alone,
        "with a draft model"
    );
    assert!(batcher.proposal_counts().accepted > 0);
}

#[test]
fn a_request_with_an_adapter_has_the_bits_of_the_adapted_model() {
    let model = long_model(Position::Rotary, Vec::new());
    let adapted = adapted(&model, 2);
    let plain = request(ids(21, 1), 3);
    let with_adapter = BatchRequest {
        adapter: Some(adapted.row_adapter().unwrap()),
        ..plain.clone()
    };
    let mut shared = paged(4, 400, model);
    let base = run(&mut shared, plain.clone());
    let output = run(&mut shared, with_adapter);
    assert_eq!(output, run(&mut paged(1, 128, adapted), plain));
    assert_ne!(output, base);
}

#[test]
fn adapters_share_no_prefixes() {
    let model = long_model(Position::Rotary, Vec::new());
    let adapters = adapters(&model);
    let mut batcher = paged(2, 2000, model.clone());
    let mut cached = |adapter: Option<RowAdapter>| {
        let request = BatchRequest {
            adapter,
            max_tokens: 1,
            ..request(ids(40, 1), 1)
        };
        let id = batcher.admit(request.clone()).unwrap().unwrap();
        let cached = batcher.cached_tokens(id);
        batcher.cancel(id);
        run(&mut batcher, request);
        cached
    };
    let variants = [
        None,
        Some(adapters[0].clone()),
        Some(adapters[1].clone()),
        Some(adapters[0].clone().with_factor(0.5)),
    ];
    for variant in &variants {
        assert_eq!(cached(variant.clone()), 0);
    }
    for variant in variants {
        assert!(cached(variant) > 0, "an adapter finds its own prefix");
    }
    // Equal values and a factor of zero compute the same keys and values.
    assert!(cached(Some(self::adapters(&model)[1].clone())) > 0);
    assert!(cached(Some(adapters[2].clone().with_factor(0.0))) > 0);
}

#[test]
fn an_adapter_of_another_model_is_rejected() {
    let other = model(Position::Rotary);
    let mut batcher = batcher(1);
    let with_adapter = |batcher: &mut Batcher, adapter| {
        let request = BatchRequest {
            adapter: Some(adapter),
            ..request(ids(5, 1), 0)
        };
        batcher.admit(request).unwrap_err().to_string()
    };
    let adapter = adapters(&other)[0].clone();
    let error = with_adapter(&mut batcher, adapter);
    assert!(error.contains("another configuration"), "{error}");
    let adapted = adapted(&other, 1);
    let adapter = adapted.row_adapter().unwrap();
    let error = with_adapter(&mut Batcher::new(adapted, BatchOptions::default()), adapter);
    assert!(error.contains("a model with an adapter"), "{error}");
}
