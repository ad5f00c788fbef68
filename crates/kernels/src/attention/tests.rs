//! The fast implementation compared with the one in plain Burn operations.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};

use super::attention;
use crate::reference::{self, Stage};
use crate::{AttentionDropout, AttentionMask, AttentionOptions, CounterRng, Segment};

/// Sizes of a case: batch, query heads, key/value heads, elements per head.
const SIZES: [usize; 4] = [2, 4, 2, 12];

pub(crate) struct Case {
    mask: AttentionMask,
    window: Option<usize>,
    soft_cap: Option<f64>,
    alibi: Vec<f64>,
    dropout: Option<AttentionDropout>,
}

impl Case {
    fn options(&self) -> AttentionOptions<'_> {
        AttentionOptions {
            scale: 0.4,
            soft_cap: self.soft_cap,
            mask: &self.mask,
            window: self.window,
            alibi: &self.alibi,
            dropout: self.dropout,
        }
    }

    /// Queries, keys and values, and a factor for each element of the output.
    fn data(&self, device: &Device) -> [Tensor<4>; 4] {
        let [batch, heads, kv_heads, dim] = SIZES;
        let q = [batch, self.mask.queries(), heads, dim];
        let k = [batch, self.mask.keys(), kv_heads, dim];
        let mut stream = 0;
        [q, k, k, q].map(|shape| {
            stream += 1;
            random(shape, stream, device)
        })
    }
}

fn random(shape: [usize; 4], stream: u64, device: &Device) -> Tensor<4> {
    let rng = CounterRng::new(stream);
    let len = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..len).map(|i| rng.normal(i) as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn values(x: Tensor<4>) -> Vec<f32> {
    x.into_data().try_to_vec().unwrap()
}

/// The output, and the gradients of queries, keys and values.
pub(crate) fn run(
    device: &Device,
    case: &Case,
    attend: impl Fn([Tensor<4>; 3], &AttentionOptions<'_>) -> Tensor<4>,
) -> Vec<Vec<f32>> {
    let [q, k, v, factor] = case.data(&device.clone().autodiff());
    let qkv = [q, k, v].map(Tensor::require_grad);
    let z = attend(qkv.clone(), &case.options());
    let gradients = (z.clone() * factor).backward(); // of the sum
    let mut results = vec![values(z)];
    results.extend(qkv.map(|x| values(x.grad(&gradients).unwrap())));
    results
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], label: &str) {
    assert_eq!(got.len(), want.len(), "{label}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let close = (g - w).abs() <= 1e-5 * w.abs() + 1e-5;
        assert!(close, "{label}: [{i}] is {g}, not {w}");
    }
}

/// One mask of every kind, with rows that differ, padding and rows without keys.
fn masks() -> Vec<(&'static str, AttentionMask)> {
    let packed = [
        vec![Segment::new(30).with_prefix(11), Segment::new(50)],
        vec![Segment::new(1), Segment::new(85).with_prefix(85)],
    ];
    let causal = || AttentionMask::causal(vec![7, 0], 90);
    vec![
        ("causal", causal()),
        ("prefix", causal().with_prefix(vec![20, 200])),
        ("packed", causal().with_segments(&packed)),
        (
            "bidirectional",
            AttentionMask::bidirectional(vec![90, 0], 90),
        ),
        (
            "bidirectional packed",
            AttentionMask::bidirectional(vec![90, 60], 90).with_segments(&packed),
        ),
        ("cross", AttentionMask::cross(vec![150, 33], 40, 150)),
    ]
}

pub(crate) fn cases() -> Vec<(String, Case)> {
    let mut cases = Vec::new();
    for (index, (name, mask)) in masks().into_iter().enumerate() {
        for variant in 0..4 {
            let has = |bit: usize| (variant + index) >> bit & 1 == 1;
            let label = format!("{name} {variant}");
            let case = Case {
                mask: mask.clone(),
                window: has(0).then_some(25),
                soft_cap: has(1).then_some(1.5),
                alibi: if has(1) {
                    vec![0.5, 0.25, 0.1, 0.0]
                } else {
                    vec![]
                },
                dropout: (variant == 3).then_some(AttentionDropout {
                    rng: CounterRng::new(5),
                    rate: 0.2,
                    first_sequence: 3,
                }),
            };
            cases.push((label, case));
        }
    }
    cases
}

#[test]
fn both_implementations_agree_for_every_kind_of_mask() {
    for (label, case) in cases() {
        let fast = run(&Device::flex(), &case, attention);
        let reference = run(&Device::flex(), &case, |qkv, options| {
            reference::attention(qkv, options, |_, _| {})
        });
        for (i, (fast, reference)) in fast.iter().zip(&reference).enumerate() {
            assert_close(fast, reference, &format!("{label}, result {i}"));
        }
    }
}

#[test]
fn inference_equals_training_bitwise() {
    for (label, case) in cases() {
        let [q, k, v, _] = case.data(&Device::flex());
        let inference = values(attention([q, k, v], &case.options()));
        assert!(
            inference == run(&Device::flex(), &case, attention)[0],
            "{label}"
        );
    }
}

#[test]
fn a_probe_gets_no_weight_for_masked_keys() {
    for (label, case) in cases() {
        let [q, k, v, _] = case.data(&Device::flex());
        let _ = reference::attention([q, k, v], &case.options(), |stage, tensor| {
            let [batch, heads, queries, keys] = tensor.dims();
            let values: Vec<f32> = tensor.to_data().try_to_vec().unwrap();
            let mut rows = values.chunks_exact(keys);
            for (row, _) in (0..batch).flat_map(|row| (0..heads).map(move |head| (row, head))) {
                for query in 0..queries {
                    let visible = case.mask.visible_keys(row, query, case.window);
                    for (key, value) in rows.next().unwrap().iter().enumerate() {
                        let is_masked = match stage {
                            Stage::Scores => *value == f32::NEG_INFINITY,
                            Stage::Pattern => *value == 0.0,
                        };
                        let is_visible = visible.contains(&key);
                        assert!(is_masked != is_visible, "{label}: {query} to {key}");
                    }
                }
            }
        });
    }
}

/// Decodes token by token from a KV cache `[slot, head, capacity, head_dim]`.
#[test]
fn decoding_equals_prefill() {
    let [batch, heads, kv_heads, dim] = SIZES;
    let (prompt, seq, capacity) = (30, 80, 96);
    for window in [None, Some(9)] {
        for prefix in [None, Some(25)] {
            let mask = |offset: usize, queries: usize| {
                let causal = AttentionMask::causal(vec![offset], queries);
                match prefix {
                    Some(prefix) => causal.with_prefix(vec![prefix]),
                    None => causal,
                }
            };
            let attend = |q: Tensor<4>, cache: &[Tensor<4>; 2], offset: usize| {
                let mask = mask(offset, q.dims()[1]);
                let options = AttentionOptions {
                    scale: 0.3,
                    soft_cap: Some(3.0),
                    mask: &mask,
                    window,
                    alibi: &[0.3, 0.2, 0.1, 0.05],
                    dropout: None,
                };
                let [k, v] = cache
                    .clone()
                    .map(|x| x.narrow(2, 0, mask.keys()).swap_dims(1, 2));
                attention([q, k, v], &options)
            };
            let device = Device::flex();
            let q = random([batch, seq, heads, dim], 1, &device);
            let cache = [2, 3].map(|i| random([batch, kv_heads, capacity, dim], i, &device));
            let whole = attend(q.clone(), &cache, 0);
            let mut parts = vec![attend(q.clone().narrow(1, 0, prompt), &cache, 0)];
            for token in prompt..seq {
                parts.push(attend(q.clone().narrow(1, token, 1), &cache, token));
            }
            let label = format!("window {window:?}, prefix {prefix:?}");
            assert_close(&values(Tensor::cat(parts, 1)), &values(whole), &label);
        }
    }
}

/// Encoder-decoder attention decodes with one query over the encoder's keys.
#[test]
fn cross_attention_decodes_over_a_cache() {
    let [batch, heads, kv_heads, dim] = SIZES;
    let device = Device::flex();
    let q = random([batch, 5, heads, dim], 1, &device);
    let cache = [2, 3].map(|i| random([batch, kv_heads, 40, dim], i, &device));
    let attend = |q: Tensor<4>| {
        let mask = AttentionMask::cross(vec![17, 0], q.dims()[1], 33);
        let options = AttentionOptions {
            scale: 0.3,
            soft_cap: None,
            mask: &mask,
            window: None,
            alibi: &[],
            dropout: None,
        };
        let [k, v] = cache.clone().map(|x| x.narrow(2, 0, 33).swap_dims(1, 2));
        attention([q, k, v], &options)
    };
    let whole = attend(q.clone());
    let tokens = (0..5).map(|token| attend(q.clone().narrow(1, token, 1)));
    let decoded = values(Tensor::cat(tokens.collect(), 1));
    assert_close(&decoded, &values(whole), "cross");
    assert!(decoded[decoded.len() / 2..].iter().all(|x| *x == 0.0));
}

#[test]
#[should_panic(expected = "does not fit a batch of 2 rows, 4 queries and 6 keys")]
fn a_mask_of_another_size_panics() {
    let device = Device::flex();
    let [q, k] = [4, 6].map(|len| Tensor::<4>::zeros([2, len, 1, 8], &device));
    let case = Case {
        mask: AttentionMask::causal(vec![0], 4),
        window: None,
        soft_cap: None,
        alibi: vec![],
        dropout: None,
    };
    let _ = attention([q, k.clone(), k], &case.options());
}

/// Attention of queries and keys of these shapes, with a mask for their lengths.
fn attend_zeros(q: [usize; 4], k: [usize; 4]) {
    let device = Device::flex();
    let case = Case {
        mask: AttentionMask::cross(vec![k[1]], q[1], k[1]),
        window: None,
        soft_cap: None,
        alibi: vec![],
        dropout: None,
    };
    let k = Tensor::zeros(k, &device);
    let _ = attention([Tensor::zeros(q, &device), k.clone(), k], &case.options());
}

#[test]
#[should_panic(expected = "queries and keys differ in batch size")]
fn keys_of_another_batch_size_panic() {
    attend_zeros([2, 4, 2, 8], [1, 4, 2, 8]);
}

#[test]
#[should_panic(expected = "queries and keys differ in head size")]
fn keys_of_another_head_size_panic() {
    attend_zeros([2, 4, 2, 8], [2, 4, 2, 4]);
}

#[test]
#[should_panic(expected = "3 query heads are not a multiple of 2 key/value heads")]
fn heads_that_form_unequal_groups_panic() {
    attend_zeros([2, 4, 3, 8], [2, 4, 2, 8]);
}

#[test]
#[should_panic(expected = "2 query heads are not a multiple of 0 key/value heads")]
fn keys_without_heads_panic() {
    attend_zeros([2, 4, 2, 8], [2, 4, 0, 8]);
}
