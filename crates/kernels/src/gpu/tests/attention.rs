//! Attention.

use burn::tensor::{Device, Tensor};

use super::{assert_close, compare, gpu, random_tensor, values};
use crate::attention::tests::{cases, run};
use crate::{AttentionMask, AttentionOptions, attention};

#[test]
fn attention_agrees_with_the_cpu_for_every_kind_of_mask() {
    let Some(gpu) = gpu() else { return };
    // Every kind of mask, and each option with and without the others.
    for (label, case) in cases().into_iter().step_by(3) {
        let actual = run(&gpu, &case, attention);
        let expected = run(&Device::flex(), &case, attention);
        for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            assert_close(&format!("{label}, result {i}"), actual, expected, 1e-5);
        }
    }
}

#[test]
fn attention_agrees_with_the_cpu_for_heads_of_all_sizes() {
    for (heads, kv_heads, dim) in [(1, 1, 1), (2, 1, 33), (1, 1, 128)] {
        let (batch, seq) = (2, 37);
        let mask = AttentionMask::causal(vec![0], seq);
        let lens = [heads, kv_heads, kv_heads].map(|heads| batch * seq * heads * dim);
        compare(&format!("heads of {dim}"), &lens, 1e-5, |x| {
            let [q, k, v] = [(0, heads), (1, kv_heads), (2, kv_heads)]
                .map(|(i, heads): (usize, usize)| x[i].clone().reshape([batch, seq, heads, dim]));
            let options = AttentionOptions {
                scale: 1.0 / (dim as f64).sqrt(),
                soft_cap: None,
                mask: &mask,
                window: None,
                alibi: &[],
                dropout: None,
            };
            let z: Tensor<4> = attention([q, k, v], &options);
            z
        });
    }
}

#[test]
fn decoding_over_a_cache_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (rows, heads, kv_heads) = (3, 4, 2);
    for (dim, soft_cap, alibi) in [
        (12, None, vec![]),
        (70, Some(1.5), vec![0.5, 0.2, 0.1, 0.0]),
    ] {
        let mask = AttentionMask::causal(vec![5, 0, 600], 1);
        let decode = |device: &Device| {
            let cache = |salt: u64| {
                let shape = [rows, kv_heads, 620, dim];
                let cache = random_tensor(salt, shape.iter().product(), device).reshape(shape);
                // A view of the cache: the kernel reads it in place.
                let tokens: Tensor<4> = cache.narrow(2, 0, 601).swap_dims(1, 2);
                tokens
            };
            let q = random_tensor(1, rows * heads * dim, device).reshape([rows, 1, heads, dim]);
            let options = AttentionOptions {
                scale: 0.3,
                soft_cap,
                mask: &mask,
                window: (dim == 70).then_some(555),
                alibi: &alibi,
                dropout: None,
            };
            values(attention([q, cache(2), cache(3)], &options))
        };
        let label = format!("decoding with heads of {dim}");
        assert_close(&label, &decode(&gpu), &decode(&Device::flex()), 1e-5);
    }
}
