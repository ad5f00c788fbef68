//! `LayerNorm` and `RMSNorm`.
#![allow(
    clippy::float_cmp,
    clippy::many_single_char_names,
    clippy::needless_for_each
)]

use crate::NormKind;
use crate::cpu::norm::{Norm, Stats, forward};
use crate::cpu::norm_backward::{NormGrads, backward};
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, check_gradient, to_f64};

fn reference(kind: NormKind, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let width = weight.len();
    x.chunks(width)
        .flat_map(|row| {
            let (mean, rstd) = statistics(kind, row);
            row.iter()
                .enumerate()
                .map(|(i, x)| (x - mean) * rstd * weight[i] + bias.get(i).copied().unwrap_or(0.0))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The mean that is subtracted, and the reciprocal of the standard deviation.
fn statistics(kind: NormKind, row: &[f64]) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = if kind == NormKind::Layer {
        row.iter().sum::<f64>() / n
    } else {
        0.0
    };
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    (mean, 1.0 / (variance + 1e-5).sqrt())
}

/// Returns dx, dweight, dbias.
fn gradients(kind: NormKind, x: &[f64], weight: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
    let width = weight.len();
    let n = width as f64;
    let mut out = [vec![0.0; x.len()], vec![0.0; width], vec![0.0; width]];
    for (r, row) in x.chunks(width).enumerate() {
        let (mean, rstd) = statistics(kind, row);
        let dy = &dy[r * width..][..width];
        let normal: Vec<f64> = row.iter().map(|x| (x - mean) * rstd).collect();
        let g: Vec<f64> = dy.iter().zip(weight).map(|(a, b)| a * b).collect();
        let mean_g = if kind == NormKind::Layer {
            g.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let mean_gn = g.iter().zip(&normal).map(|(a, b)| a * b).sum::<f64>() / n;
        for i in 0..width {
            out[0][r * width + i] = rstd * (g[i] - mean_g - normal[i] * mean_gn);
            out[1][i] += dy[i] * normal[i];
            out[2][i] += dy[i];
        }
    }
    out
}

struct Case {
    kind: NormKind,
    width: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

impl Case {
    fn random(rng: &mut Rng, rows: usize, width: usize) -> Self {
        let len = rows * width;
        Self {
            kind: rng.pick(&[NormKind::Layer, NormKind::Rms]),
            width,
            x: rng.floats(len).iter().map(|x| 2.0 * x + 0.5).collect(),
            weight: rng.floats(width),
            bias: if rng.below(2) == 0 {
                vec![]
            } else {
                rng.floats(width)
            },
            dy: rng.floats(len),
        }
    }

    /// Returns y, dx, dweight, dbias.
    fn run(&self) -> [Vec<f32>; 4] {
        let norm = Norm {
            kind: self.kind,
            weight: &self.weight,
            bias: &self.bias,
            eps: 1e-5,
        };
        let rows = self.x.len() / self.width;
        let [mut y, mut dx] = [(); 2].map(|()| vec![f32::NAN; self.x.len()]);
        let [mut mean, mut rstd] = [(); 2].map(|()| vec![f32::NAN; rows]);
        forward(
            &norm,
            &self.x,
            &mut y,
            Stats {
                mean: &mut mean,
                rstd: &mut rstd,
            },
        );
        let mut dw = vec![0.25; self.width];
        let mut db = vec![0.5; self.bias.len()];
        let grads = NormGrads {
            x: &mut dx,
            weight: &mut dw,
            bias: &mut db,
        };
        backward(&norm, &self.x, (&mean, &rstd), &self.dy, grads);
        [y, dx, dw, db]
    }
}

#[test]
fn matches_f64() {
    let mut rng = Rng(1);
    for (rows, width) in [
        (1, 1),
        (1, 2),
        (3, 7),
        (5, 16),
        (2, 33),
        (100, 384),
        (7, 768),
        (1000, 48),
        (0, 8),
    ] {
        for _ in 0..6 {
            let case = Case::random(&mut rng, rows, width);
            let [y, dx, dw, db] = case.run();
            let x = to_f64(&case.x);
            let (weight, bias, dy) = (to_f64(&case.weight), to_f64(&case.bias), to_f64(&case.dy));
            // With one element per row the variance is 0 and eps alone decides, so rounding
            // matters.
            let tolerance = if width < 3 { 2e-2 } else { 1e-5 };
            assert_close(
                &y,
                &reference(case.kind, &x, &weight, &bias),
                tolerance,
                "y",
            );
            let [ex, mut ew, mut eb] = gradients(case.kind, &x, &weight, &dy);
            ew.iter_mut().for_each(|e| *e += 0.25);
            eb.iter_mut().for_each(|e| *e += 0.5);
            eb.truncate(db.len());
            assert_close(&dx, &ex, tolerance, "dx");
            assert_close(&dw, &ew, 4.0 * tolerance, "dweight");
            assert_close(&db, &eb, tolerance, "dbias");
        }
    }
}

#[test]
fn reference_gradients_match_finite_differences() {
    let mut rng = Rng(2);
    for kind in [NormKind::Layer, NormKind::Rms] {
        let [x, w, dy] = [30, 10, 30].map(|n| to_f64(&rng.floats(n)));
        let [dx, dw, _] = gradients(kind, &x, &w, &dy);
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            reference(kind, x, w, &[])
                .iter()
                .zip(&dy)
                .map(|(y, d)| y * d)
                .sum()
        };
        check_gradient(&mut rng, &x, &dx, |x| loss(x, &w), "dx");
        check_gradient(&mut rng, &w, &dw, |w| loss(&x, w), "dw");
    }
}

#[test]
fn results_are_identical_for_any_thread_count() {
    let mut rng = Rng(3);
    for (rows, width) in [(1000, 384), (333, 65), (9000, 8)] {
        let case = Case::random(&mut rng, rows, width);
        assert_same_for_any_threads(|| case.run().concat());
    }
}
