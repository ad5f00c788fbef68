use burn::tensor::{Device, Int, Tensor, TensorData};

use super::*;
use crate::{InitConfig, ModelConfig, Position, Transformer};

const VOCAB: u32 = 31;

fn config(position: Position, n_kv_heads: usize, window: Option<usize>) -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB as usize,
        context_length: 96,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: Some(n_kv_heads),
        d_model: 32,
        position,
        windows: window.into_iter().collect(),
        init: InitConfig {
            std: 0.3,
            scale_output: false,
        },
        ..ModelConfig::default()
    }
}

fn models() -> Vec<Transformer> {
    let device = Device::flex();
    [
        config(Position::Rotary, 4, None),
        config(Position::Rotary, 2, Some(20)),
        config(Position::Alibi, 1, None),
        config(Position::Learned, 2, None),
    ]
    .into_iter()
    .map(|config| config.init(&device, 5).unwrap())
    .collect()
}

fn ids(len: usize) -> Vec<i32> {
    (0..len as i32).map(|i| (i * i + 7 * i + 3) % 31).collect()
}

/// The bits of the logits of `ids`, of as many rows as `slots` has, which continue the slots.
fn forward(
    model: &Transformer,
    cache: &mut KvCache,
    slots: &[usize],
    ids: &[i32],
) -> Vec<Vec<u32>> {
    let shape = [slots.len(), ids.len() / slots.len()];
    let data = TensorData::new(ids.to_vec(), shape);
    let tokens = Tensor::<2, Int>::from_data(data, &model.device());
    let logits = model
        .forward_cached(tokens, cache, slots)
        .into_data()
        .try_into_vec::<f32>()
        .unwrap();
    let rows = logits.chunks(VOCAB as usize);
    rows.map(|row| row.iter().map(|x| x.to_bits()).collect())
        .collect()
}

#[test]
fn logits_do_not_depend_on_the_size_of_pages() {
    let ids = ids(90);
    for model in models() {
        let run = |page_len: usize| {
            let device = model.device();
            let mut cache = KvCache::with_pages(model.config(), 1, page_len, 96, &device);
            let mut logits = Vec::new();
            // Prefill in unequal parts, across pages, then single tokens.
            for range in [0..1, 1..40, 40..43, 43..64] {
                logits.extend(forward(&model, &mut cache, &[0], &ids[range]));
            }
            for id in &ids[64..] {
                logits.extend(forward(&model, &mut cache, &[0], &[*id]));
            }
            logits
        };
        let one_page = run(96);
        for page_len in [1, 8, 16, 32, 33] {
            assert_eq!(run(page_len), one_page, "{page_len}");
        }
    }
}

#[test]
fn rows_of_one_slot_have_the_bits_of_single_steps() {
    let ids = ids(70);
    for model in models() {
        let device = model.device();
        let prompt = |cache: &mut KvCache| forward(&model, cache, &[0], &ids[..14]);
        let mut one_by_one = KvCache::with_pages(model.config(), 2, 8, 24, &device);
        prompt(&mut one_by_one);
        let expected: Vec<_> = ids[14..]
            .iter()
            .flat_map(|id| forward(&model, &mut one_by_one, &[0], &[*id]))
            .collect();
        for count in [2, 3, 8, 9, 17] {
            let mut together = KvCache::with_pages(model.config(), 2, 8, 24, &device);
            prompt(&mut together);
            // Another sequence takes part in each step.
            forward(&model, &mut together, &[1], &ids[30..40]);
            let mut logits = Vec::new();
            for chunk in ids[14..].chunks(count) {
                let slots = [vec![0; chunk.len()], vec![1]].concat();
                let rows = forward(&model, &mut together, &slots, &[chunk, &[5]].concat());
                logits.extend_from_slice(&rows[..chunk.len()]);
            }
            assert_eq!(logits, expected, "{count} at once");
            assert_eq!(together.len(0), 70);
        }
    }
}

/// Passes that begin at multiples of 16, the largest number of queries in a register, and are long enough for
/// the same matrix products.
#[test]
fn a_long_pass_has_the_bits_of_shorter_ones_from_page_to_page() {
    let ids = ids(64);
    for model in models() {
        if !model.config().windows.is_empty() {
            continue; // The tiles of keys begin at the window of the first query.
        }
        let run = |ends: &[usize]| {
            let device = model.device();
            let mut cache = KvCache::with_pages(model.config(), 1, 16, 6, &device);
            let mut start = 0;
            let logits = ends.iter().flat_map(|end| {
                let logits = forward(&model, &mut cache, &[0], &ids[start..*end]);
                start = *end;
                logits
            });
            logits.collect::<Vec<_>>()
        };
        for len in [64, 57] {
            let whole = run(&[len]);
            for ends in [&[32, len][..], &[16, 32, 48, len], &[16, len], &[48, len]] {
                assert_eq!(run(ends), whole, "{ends:?}");
            }
        }
    }
}

#[test]
fn a_shared_page_is_copied_before_it_is_written() {
    let model = &models()[0];
    let ids = ids(40);
    let mut cache = KvCache::with_pages(model.config(), 3, 8, 20, &model.device());
    forward(model, &mut cache, &[0], &ids[..20]);
    let pages = cache.slot_pages(0).to_vec();
    assert_eq!((pages.len(), cache.free_pages()), (3, 17));
    for page in &pages[..2] {
        cache.append_page(1, *page);
    }
    assert_eq!((cache.len(1), cache.references(pages[1])), (16, 2));
    // Slot 1 continues with other tokens in a page of its own, then inside the shared one.
    forward(model, &mut cache, &[1], &ids[25..30]);
    cache.truncate(1, 13);
    let continued = forward(model, &mut cache, &[1], &ids[30..31]);
    assert_ne!(cache.slot_pages(1)[1], pages[1]);
    assert_eq!(
        (cache.slot_pages(1)[0], cache.references(pages[0])),
        (pages[0], 2)
    );

    let mut alone = KvCache::with_pages(model.config(), 1, 8, 12, &model.device());
    forward(model, &mut alone, &[0], &ids[..20]);
    let expected = forward(model, &mut alone, &[0], &ids[20..21]);
    assert_eq!(forward(model, &mut cache, &[0], &ids[20..21]), expected);
    alone.truncate(0, 13);
    assert_eq!(forward(model, &mut alone, &[0], &ids[30..31]), continued);

    for slot in 0..3 {
        cache.clear(slot);
    }
    assert_eq!((cache.free_pages(), cache.is_empty()), (20, true));
}

#[test]
fn a_retained_page_stays_until_it_is_released() {
    let model = &models()[0];
    let mut cache = KvCache::with_pages(model.config(), 2, 8, 2, &model.device());
    forward(model, &mut cache, &[0], &ids(9));
    let page = cache.slot_pages(0)[0];
    cache.retain(page);
    cache.clear(0);
    assert_eq!(cache.free_pages(), 1);
    assert!(!cache.reserve(1, 9));
    assert!(cache.slot_pages(1).is_empty());
    cache.release(page);
    assert!(cache.reserve(1, 9));
}

#[test]
fn memory_is_allocated_as_pages_are_used() {
    for precision in [CachePrecision::F32, CachePrecision::Int8] {
        let model = &models()[0];
        let cache = KvCache::with_pages(model.config(), 1, 1, 5000, &model.device());
        let mut cache = cache.with_precision(precision);
        assert_eq!((cache.pages(), cache.shape[0]), (5000, 64));
        forward(model, &mut cache, &[0], &ids(64));
        assert_eq!(cache.shape[0], 64);
        let grown = forward(model, &mut cache, &[0], &ids(9));
        assert_eq!(cache.shape[0], 128);

        let whole = KvCache::with_pages(model.config(), 1, 96, 1, &model.device());
        let mut whole = whole.with_precision(precision);
        forward(model, &mut whole, &[0], &ids(64));
        assert_eq!(forward(model, &mut whole, &[0], &ids(9)), grown);
    }
}

#[test]
#[should_panic(expected = "duplicate slots: [1, 1]")]
fn appending_several_tokens_to_a_slot_twice_panics() {
    let model = &models()[0];
    let mut cache = KvCache::new(model.config(), 2, &model.device());
    forward(model, &mut cache, &[1, 1], &ids(4));
}

#[test]
#[should_panic(expected = "97 tokens do not fit into a cache of 96")]
fn a_full_slot_accepts_no_tokens() {
    let model = &models()[0];
    let mut cache = KvCache::new(model.config(), 1, &model.device());
    cache.prepare(&[0], 97);
}
