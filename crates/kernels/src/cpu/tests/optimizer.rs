//! `AdamW` and the global gradient norm.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::AdamwStep;
use crate::cpu::adamw::{Parameter, step};
use crate::cpu::sum_of_squares::sum_of_squares;
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, to_f64};

const SIZES: [usize; 6] = [1, 0, 17, 16_384, 40_001, 3];

fn settings(t: u64) -> AdamwStep {
    AdamwStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        step: t,
        gradient_scale: 0.7,
    }
}

/// Returns values, first and second moments of all parameters after three steps.
fn run(start: &[Vec<f32>], grads: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut values = start.to_vec();
    let mut first_moments: Vec<Vec<f32>> = start.iter().map(|v| vec![0.0; v.len()]).collect();
    let mut second_moments = first_moments.clone();
    for t in 1..=3 {
        let states = values
            .iter_mut()
            .zip(&mut first_moments)
            .zip(&mut second_moments);
        let parameters = states
            .zip(grads)
            .enumerate()
            .map(
                |(i, (((value, first_moment), second_moment), grad))| Parameter {
                    value,
                    grad,
                    first_moment,
                    second_moment,
                    weight_decay: if i % 2 == 0 { 0.1 } else { 0.0 },
                },
            )
            .collect();
        step(parameters, &settings(t));
    }
    [values, first_moments, second_moments].concat()
}

#[test]
fn adamw_matches_f64() {
    let mut rng = Rng(1);
    let [start, grads] = [(); 2].map(|()| SIZES.map(|n| rng.floats(n)).to_vec());
    let got = run(&start, &grads);
    for (i, (value, grad)) in start.iter().zip(&grads).enumerate() {
        let mut p = to_f64(value);
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for t in 1..=3 {
            let s = settings(t);
            let (c1, c2) = (1.0 - s.beta1.powi(t as i32), 1.0 - s.beta2.powi(t as i32));
            for j in 0..p.len() {
                let g = f64::from(grad[j]) * s.gradient_scale;
                p[j] *= 1.0 - s.lr * if i % 2 == 0 { 0.1 } else { 0.0 };
                m[j] = s.beta1 * m[j] + (1.0 - s.beta1) * g;
                v[j] = s.beta2 * v[j] + (1.0 - s.beta2) * g * g;
                p[j] -= s.lr / c1 * m[j] / (v[j].sqrt() / c2.sqrt() + s.eps);
            }
        }
        assert_close(&got[i], &p, 1e-6, "value");
        assert_close(&got[i + SIZES.len()], &m, 1e-6, "mean");
        assert_close(&got[i + 2 * SIZES.len()], &v, 1e-6, "square");
    }
}

#[test]
fn sum_of_squares_matches_f64() {
    let mut rng = Rng(2);
    let arrays = SIZES.map(|n| rng.floats(n));
    let slices: Vec<&[f32]> = arrays.iter().map(|a| &a[..]).collect();
    let want: f64 = arrays.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
    assert!((sum_of_squares(&slices) / want - 1.0).abs() < 1e-6);
    assert_eq!(sum_of_squares(&[]), 0.0);
}

#[test]
fn results_are_identical_for_any_thread_count() {
    let mut rng = Rng(3);
    let [start, grads] = [(); 2].map(|()| SIZES.map(|n| rng.floats(n)).to_vec());
    assert_same_for_any_threads(|| {
        let slices: Vec<&[f32]> = start.iter().map(|a| &a[..]).collect();
        let mut all = run(&start, &grads).concat();
        let bits = sum_of_squares(&slices).to_bits();
        all.extend([bits as u32, (bits >> 32) as u32].map(f32::from_bits));
        all
    });
}
