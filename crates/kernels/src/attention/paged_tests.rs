//! Attention over pages against attention over one run of the same tokens.

use burn::tensor::{Device, Distribution, Tensor};

use crate::cpu::testing::Rng;
use crate::{AttentionMask, AttentionOptions, attention, attention_paged, write_cache};

fn random(shape: [usize; 4]) -> Tensor<4> {
    Tensor::<4>::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

/// Pages for `len` tokens, in random order, taken from `free`.
fn take_pages(rng: &mut Rng, free: &mut Vec<usize>, count: usize) -> Vec<usize> {
    (0..count)
        .map(|_| free.swap_remove(rng.below(free.len())))
        .collect()
}

#[test]
fn pages_give_the_bits_of_one_run() {
    let mut rng = Rng(7);
    for case in 0..120 {
        let (n_kv_heads, group) = (rng.range(1, 3), rng.range(1, 3));
        let (page_len, dim) = (rng.pick(&[1, 4, 8, 16]), rng.pick(&[4, 16, 20, 64]));
        let (rows, seq) = (rng.range(1, 3), rng.pick(&[1, 1, 2, 9, 33, 70]));
        let offsets: Vec<usize> = (0..rows)
            .map(|_| rng.pick(&[0, 1, 15, 16, 17, 63, 64, 65, 130]))
            .collect();
        let mask = AttentionMask::causal(offsets.clone(), seq);
        let slopes: Vec<f64> = (0..group * n_kv_heads)
            .map(|head| 0.5_f64.powi(head as i32 + 1))
            .collect();
        let options = AttentionOptions {
            scale: 0.3,
            soft_cap: (rng.below(3) == 0).then_some(5.0),
            mask: &mask,
            window: (rng.below(2) == 0).then(|| rng.pick(&[1, 5, 16, 40])),
            alibi: if rng.below(2) == 0 { &slopes } else { &[] },
            dropout: None,
        };
        let q = random([rows, seq, n_kv_heads * group, dim]);
        let [k, v] = [(), ()].map(|()| random([rows, n_kv_heads, mask.keys(), dim]));
        let per_row = mask.keys().div_ceil(page_len);
        let mut free: Vec<usize> = (0..rows * per_row + 3).collect();
        let pages: Vec<Vec<usize>> = offsets
            .iter()
            .map(|offset| take_pages(&mut rng, &mut free, (offset + seq).div_ceil(page_len)))
            .collect();
        let pages: Vec<&[usize]> = pages.iter().map(Vec::as_slice).collect();
        let fill = |x: &Tensor<4>| {
            let empty = random([rows * per_row + 3, n_kv_heads, page_len, dim]);
            (0..rows).fold(empty, |cache, row| {
                let tokens = x.clone().narrow(0, row, 1);
                let tokens = tokens.narrow(2, 0, offsets[row] + seq);
                write_cache(cache, tokens, &[pages[row]], &[0])
            })
        };
        let paged = attention_paged(q.clone(), [&fill(&k), &fill(&v)], &pages, &options);
        let run = attention([q, k.swap_dims(1, 2), v.swap_dims(1, 2)], &options);
        assert_eq!(
            paged.into_data(),
            run.into_data(),
            "case {case}: {rows} rows of {seq} queries at {offsets:?}, pages of {page_len}"
        );
    }
}

#[test]
#[should_panic(expected = "row 0 has pages for 4 tokens, not 5")]
fn a_row_without_enough_pages_panics() {
    let mask = AttentionMask::causal(vec![4], 1);
    let options = AttentionOptions {
        scale: 1.0,
        soft_cap: None,
        mask: &mask,
        window: None,
        alibi: &[],
        dropout: None,
    };
    let cache = random([2, 1, 4, 3]);
    let _ = attention_paged(random([1, 1, 1, 3]), [&cache, &cache], &[&[1]], &options);
}
