//! Kernels that depend on positions or ids: `RoPE`, embeddings, dropout.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::cpu::dropout::{Mask, apply};
use crate::cpu::embedding::{gather, scatter_add};
use crate::cpu::rotary::{Direction, Tables, rotate};
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, dropout_factor, to_f64};

/// Rotates by the definition, or by its transpose.
fn rotated(direction: Direction, x: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out: Vec<f64> = x.iter().zip(cos).map(|(x, c)| x * c).collect();
    for i in 0..half {
        match direction {
            Direction::Forward => {
                out[i] -= x[i + half] * sin[i];
                out[i + half] += x[i] * sin[i + half];
            }
            Direction::Backward => {
                out[i] += x[i + half] * sin[i + half];
                out[i + half] -= x[i] * sin[i];
            }
        }
    }
    out
}

#[test]
fn rotary_matches_f64() {
    let mut rng = Rng(1);
    for _ in 0..40 {
        let sizes @ [batch, seq, heads, dim] = [
            rng.below(4),
            rng.range(1, 9),
            rng.range(1, 4),
            2 * rng.range(1, 40),
        ];
        let offsets: Vec<usize> = (0..batch).map(|_| rng.below(20)).collect();
        let positions = 32;
        let (cos, sin) = (rng.floats(positions * dim), rng.floats(positions * dim));
        let tables = Tables {
            cos: &cos,
            sin: &sin,
        };
        let x = rng.floats(batch * seq * heads * dim);
        let direction = rng.pick(&[Direction::Forward, Direction::Backward]);
        let mut got = x.clone();
        rotate(direction, tables, &offsets, &mut got, sizes);
        for (head, x) in x.chunks(dim).enumerate() {
            let (b, i) = (head / heads / seq, head / heads % seq);
            let position = offsets[b] + i;
            let [c, s] = [&cos, &sin].map(|t| to_f64(&t[position * dim..][..dim]));
            let want = rotated(direction, &to_f64(x), &c, &s);
            assert_close(&got[head * dim..][..dim], &want, [1e-6, 1e-6], "rotary");
        }
    }
}

#[test]
fn gather_and_scatter_match_scalar_loops() {
    let mut rng = Rng(2);
    for (vocab, width, n) in [
        (1, 1, 1),
        (7, 33, 50),
        (100, 384, 300),
        (3, 64, 0),
        (50, 130, 9),
    ] {
        let (table, grad) = (rng.floats(vocab * width), rng.floats(n * width));
        let ids: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
        let mut out = vec![f32::NAN; n * width];
        gather(&table, width, &ids, &mut out);
        let mut want = table.clone();
        for (i, id) in ids.iter().enumerate() {
            let start = *id as usize * width;
            assert_eq!(out[i * width..][..width], table[start..][..width]);
            (0..width).for_each(|c| want[start + c] += grad[i * width + c]);
        }
        let got = assert_same_for_any_threads(|| {
            let mut sum = table.clone();
            scatter_add(&grad, width, &ids, &mut sum);
            sum
        });
        assert_eq!(got, want);
    }
}

#[test]
#[should_panic(expected = "token id out of range")]
fn out_of_range_ids_panic() {
    gather(&[0.0; 6], 2, &[3], &mut [0.0; 2]);
}

#[test]
fn dropout_matches_the_reference_mask() {
    let mut rng = Rng(3);
    for rate in [0.0, 0.1, 0.5, 0.999] {
        for (offset, len) in [
            (0, 1),
            (5, 63),
            (4, 64),
            (7, 0),
            (1_000_001, 40_001),
            (u64::from(u32::MAX), 200),
        ] {
            let mask = Mask {
                key: rng.next(),
                rate,
            };
            let x = rng.floats(len);
            let mut y = vec![f32::NAN; len];
            apply(mask, offset, &x, &mut y);
            for i in 0..len {
                assert_eq!(
                    y[i],
                    x[i] * dropout_factor(mask.key, rate, offset + i as u64) as f32
                );
            }
            let again = assert_same_for_any_threads(|| {
                let mut y = vec![f32::NAN; len];
                apply(mask, offset, &x, &mut y);
                y
            });
            assert_eq!(again, y);
        }
    }
}
