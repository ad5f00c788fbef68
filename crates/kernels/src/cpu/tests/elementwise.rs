//! Sums of arrays and rows.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::cpu::elementwise::{add_scaled, scale};
use crate::cpu::reduce::add_column_sums;
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, to_f64};

#[test]
fn sums_match_scalar_loops() {
    let mut rng = Rng(1);
    for len in [0, 1, 16, 31, 100_001] {
        let (a, b) = (rng.floats(len), rng.floats(len));
        let mut y = a.clone();
        add_scaled(&mut y, 0.3, &b);
        let want: Vec<f64> = to_f64(&a)
            .iter()
            .zip(to_f64(&b))
            .map(|(a, b)| a + f64::from(0.3_f32) * b)
            .collect();
        assert_close(&y, &want, 2e-7, "scaled");
        let mut y = a.clone();
        scale(&mut y, -2.0);
        assert!((0..len).all(|i| y[i] == -2.0 * a[i]));
    }
}

#[test]
fn column_sums_match_f64() {
    let mut rng = Rng(2);
    for (rows, width) in [
        (0, 3),
        (1, 1),
        (5, 17),
        (1000, 384),
        (70_000, 2),
        (3, 20_000),
    ] {
        let (x, bias) = (rng.floats(rows * width), rng.floats(width));
        let mut want = to_f64(&bias);
        x.iter()
            .enumerate()
            .for_each(|(i, x)| want[i % width] += f64::from(*x));
        let got = assert_same_for_any_threads(|| {
            let mut sums = bias.clone();
            add_column_sums(&x, &mut sums);
            sums
        });
        assert_close(&got, &want, 1e-5, "column sums");
    }
    add_column_sums(&[], &mut []);
}
