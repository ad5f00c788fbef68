//! Kernels that look up a place: rotary positions, embeddings, dropout.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::common::{Rng, assert_close, keep, same_for_any_threads, wide};
use nextword_kernels::cpu::dropout::{Mask, apply, apply_in_place};
use nextword_kernels::cpu::embedding::{gather, scatter_add};
use nextword_kernels::cpu::rotary::{Tables, Turn, rotate};
use nextword_kernels::cpu::view::{Strides, ViewMut};

/// Rotates by the definition, and the transpose.
fn turned(turn: Turn, x: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out: Vec<f64> = x.iter().zip(cos).map(|(x, c)| x * c).collect();
    for i in 0..half {
        match turn {
            Turn::Forward => {
                out[i] -= x[i + half] * sin[i];
                out[i + half] += x[i] * sin[i + half];
            }
            Turn::Backward => {
                out[i] += x[i + half] * sin[i + half];
                out[i + half] -= x[i] * sin[i];
            }
        }
    }
    out
}

#[test]
fn rotary_agrees_with_f64_in_both_layouts() {
    let mut rng = Rng(1);
    for _ in 0..40 {
        let sizes @ [batch, seq, heads, dim] = [
            rng.below(4),
            rng.range(1, 9),
            rng.range(1, 4),
            2 * rng.range(1, 40),
        ];
        let starts: Vec<usize> = if rng.below(2) == 0 {
            vec![]
        } else {
            (0..batch).map(|_| rng.below(20)).collect()
        };
        let places = 32;
        let (cos, sin) = (rng.numbers(places * dim), rng.numbers(places * dim));
        let x = rng.numbers(batch * seq * heads * dim);
        let turn = rng.pick(&[Turn::Forward, Turn::Backward]);
        for strides in [
            Strides::token_first(seq, heads, dim),
            Strides::head_first(heads, seq, dim),
        ] {
            let mut got = x.clone();
            let view = ViewMut {
                data: &mut got,
                strides,
            };
            rotate(
                turn,
                Tables {
                    cos: &cos,
                    sin: &sin,
                },
                &starts,
                view,
                sizes,
            );
            for b in 0..batch {
                for i in 0..seq {
                    for h in 0..heads {
                        let at = b * strides.batch + i * strides.seq + h * strides.head;
                        let place = starts.get(b).copied().unwrap_or(0) + i;
                        let [c, s] = [&cos, &sin].map(|t| wide(&t[place * dim..][..dim]));
                        let want = turned(turn, &wide(&x[at..at + dim]), &c, &s);
                        assert_close(&got[at..at + dim], &want, 1e-6, "rotary");
                    }
                }
            }
        }
    }
}

#[test]
fn gather_and_scatter_agree_with_the_definition() {
    let mut rng = Rng(2);
    for (vocab, width, n) in [
        (1, 1, 1),
        (7, 33, 50),
        (100, 384, 300),
        (3, 64, 0),
        (50, 130, 9),
    ] {
        let (table, grad) = (rng.numbers(vocab * width), rng.numbers(n * width));
        let ids: Vec<u32> = (0..n).map(|_| rng.below(vocab) as u32).collect();
        let mut out = vec![f32::NAN; n * width];
        gather(&table, width, &ids, &mut out);
        let mut want = table.clone();
        for (i, id) in ids.iter().enumerate() {
            let at = *id as usize * width;
            assert_eq!(out[i * width..][..width], table[at..][..width]);
            (0..width).for_each(|c| want[at + c] += grad[i * width + c]);
        }
        let got = same_for_any_threads(|| {
            let mut sum = table.clone();
            scatter_add(&grad, width, &ids, &mut sum);
            sum
        });
        assert_eq!(got, want);
    }
}

#[test]
#[should_panic(expected = "ids are rows")]
fn unknown_ids_are_refused() {
    gather(&[0.0; 6], 2, &[3], &mut [0.0; 2]);
}

#[test]
fn dropout_is_the_models_mask() {
    let mut rng = Rng(3);
    for rate in [0.0, 0.1, 0.5, 0.999] {
        for (first, len) in [
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
            let x = rng.numbers(len);
            let mut y = vec![f32::NAN; len];
            apply(mask, first, &x, &mut y);
            for i in 0..len {
                assert_eq!(y[i], x[i] * keep(mask.key, rate, first + i as u64) as f32);
            }
            let again = same_for_any_threads(|| {
                let mut y = x.clone();
                apply_in_place(mask, first, &mut y);
                y
            });
            assert_eq!(again, y);
        }
    }
}
