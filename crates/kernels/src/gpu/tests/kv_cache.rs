//! The pages of a KV cache.

use burn::tensor::{Device, Tensor};

use super::{assert_close, gpu, random_tensor, values};
use crate::{AttentionMask, AttentionOptions, attention_paged, write_keys_values};

fn cache(salt: u64, shape: [usize; 4], device: &Device) -> Tensor<4> {
    random_tensor(salt, shape.iter().product(), device).reshape(shape)
}

#[test]
fn writes_to_pages_agree_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let pages: [&[usize]; 3] = [&[4, 1], &[0], &[8, 2, 5]];
    for (seq, starts) in [(1, [7, 0, 8]), (3, [2, 1, 7])] {
        let written = |device: &Device| {
            let stored = [1, 2].map(|salt| cache(salt, [9, 2, 4, 5], device));
            // The layout that attention produces: tokens before heads.
            let new = [3, 4].map(|salt| cache(salt, [3, seq, 2, 5], device).swap_dims(1, 2));
            write_keys_values(stored, new, &pages, &starts).map(values)
        };
        assert_eq!(written(&gpu), written(&Device::flex()), "{seq} tokens");
    }
}

/// Single queries read the pages in place, others a copy.
#[test]
fn attention_over_pages_agrees_with_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let lists: [&[usize]; 2] = [&[6, 2, 7, 0, 4], &[1, 3]];
    for seq in [1, 3] {
        let mask = AttentionMask::causal(vec![37 - seq, 9], seq);
        let options = AttentionOptions {
            scale: 0.4,
            soft_cap: None,
            mask: &mask,
            window: Some(30),
            alibi: &[0.5, 0.25, 0.1, 0.0],
            dropout: None,
        };
        let attend = |device: &Device| {
            let [keys, values_] = [1, 2].map(|salt| cache(salt, [8, 2, 8, 20], device));
            let q = cache(3, [2, seq, 4, 20], device);
            values(attention_paged(q, [&keys, &values_], &lists, &options))
        };
        let label = format!("{seq} queries");
        assert_close(&label, &attend(&gpu), &attend(&Device::flex()), 1e-5);
    }
}
