//! Checks quantization errors, and compares kernels with products of dequantized weights.

use super::*;
use crate::Precision;
use crate::cpu::isa::Isa;
use crate::cpu::matmul::gemm::{GemmOptions, gemm};
use crate::cpu::matmul::matrix::{MatMut, round_to_bf16};
use crate::cpu::matmul::matvec::MatvecOptions;
use crate::cpu::par::with_threads;
use crate::cpu::testing::Rng;

const BITS: [Bits; 2] = [Bits::Int8, Bits::Int4];

fn dequantized(w: &QuantMatrix) -> Vec<f32> {
    (0..w.k * w.n).map(|i| w.value(i / w.n, i % w.n)).collect()
}

fn product(x: &[f32], rows: usize, w: &QuantMatrix, options: &MatvecOptions<'_>) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.n];
    let x = MatRef::row_major(&x[..rows * w.k], rows, w.k);
    matvec_quant(x, w, &mut MatMut::row_major(&mut y, rows, w.n), options);
    y
}

#[test]
fn quantization_error_is_at_most_half_a_step() {
    let mut rng = Rng(31);
    for bits in BITS {
        for (k, n, magnitude) in [(100, 37, 1.0), (32, 16, 1e-30), (64, 5, 1e30), (1, 1, 3.0)] {
            let w: Vec<f32> = rng.floats(k * n).iter().map(|v| v * magnitude).collect();
            for (view, strides) in [
                (MatRef::row_major(&w, k, n), [n, 1]),
                (MatRef::row_major(&w, n, k).t(), [1, k]),
            ] {
                let q = QuantMatrix::quantize(view, bits);
                for j in 0..n {
                    for i in 0..k {
                        let block = i / BLOCK * BLOCK;
                        let max_abs = (block..k.min(block + BLOCK))
                            .map(|i| w[i * strides[0] + j * strides[1]].abs())
                            .fold(0.0, f32::max);
                        // Half a step, plus the error of rounding the scale up.
                        let bound = max_abs / bits.max() as f32 * 0.5 * 1.01;
                        let error = (q.value(i, j) - w[i * strides[0] + j * strides[1]]).abs();
                        assert!(error <= bound, "{bits:?} {error} {bound}");
                    }
                }
            }
        }
    }
}

#[test]
fn kernels_match_f64_of_the_dequantized_weights() {
    for isa in Isa::available() {
        for bits in BITS {
            let mut rng = Rng(32);
            for case in 0..60 {
                let (m, k, n) = (1 + rng.below(9), rng.below(141), rng.below(71));
                // Below 1, so that the error of rounding x is relative to the weights alone.
                let x: Vec<f32> = rng.floats(m * k).iter().map(|x| x / 4.0).collect();
                let (w, bias) = (rng.floats(k * n), rng.floats(n));
                let q = QuantMatrix::quantize(MatRef::row_major(&w, k, n), bits);
                let options = MatvecOptions {
                    bias: (case % 3 == 1).then_some(&bias[..]),
                    isa,
                };
                let y = product(&x, m, &q, &options);
                let w = dequantized(&q);
                for i in 0..m {
                    for j in 0..n {
                        let mut want = options.bias.map_or(0.0, |b| f64::from(b[j]));
                        let mut size = want.abs();
                        for p in 0..k {
                            let term = f64::from(x[i * k + p]) * f64::from(w[p * n + j]);
                            want += term;
                            size += f64::from(w[p * n + j]).abs();
                        }
                        let error = (f64::from(y[i * n + j]) - want).abs();
                        assert!(
                            error <= size * 2e-5,
                            "{isa:?} {bits:?} {m} {k} {n}: {error}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn result_is_bitwise_independent_of_isa_rows_and_threads() {
    let mut rng = Rng(33);
    let (m, k, n) = (11, 300, 203);
    let (x, w) = (rng.floats(m * k), rng.floats(k * n));
    for bits in BITS {
        let q = QuantMatrix::quantize(MatRef::row_major(&w, k, n), bits);
        let scalar = MatvecOptions {
            isa: Isa::Scalar,
            ..Default::default()
        };
        let all = product(&x, m, &q, &scalar);
        for isa in Isa::available() {
            let options = MatvecOptions { bias: None, isa };
            for threads in [1, 2, 5] {
                for rows in 1..=m {
                    let part = with_threads(threads, || product(&x, rows, &q, &options));
                    assert_eq!(part, all[..rows * n], "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn gemm_dequantizes_while_packing() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut rng = Rng(34);
            for (m, k, n) in [
                (5, 70, 40),
                (30, 33, 17),
                (13, 800, 70),
                (2, 1, 1),
                (3, 0, 9),
            ] {
                let (a, w) = (rng.floats(m * k), rng.floats(k * n));
                for bits in BITS {
                    let w = MatRef::row_major(&w, k, n);
                    let q = QuantMatrix::quantize(w, bits);
                    let mut w = dequantized(&q);
                    if precision == Precision::Bf16 {
                        for v in &mut w {
                            *v = round_to_bf16(*v);
                        }
                    }
                    let options = GemmOptions {
                        precision,
                        isa,
                        ..Default::default()
                    };
                    let (mut got, mut want) = (vec![0.0; m * n], vec![0.0; m * n]);
                    let a = MatRef::row_major(&a, m, k);
                    gemm(a, &q, &mut MatMut::row_major(&mut got, m, n), &options);
                    let w = MatRef::row_major(&w, k, n);
                    gemm(a, w, &mut MatMut::row_major(&mut want, m, n), &options);
                    assert_eq!(got, want, "{isa:?} {precision:?} {bits:?} {m} {k} {n}");
                }
            }
        }
    }
}

#[test]
fn non_finite_values_propagate_as_nan() {
    for isa in Isa::available() {
        for bits in BITS {
            let mut w = vec![1.0; 64 * 2];
            w[5 * 2] = f32::INFINITY;
            let q = QuantMatrix::quantize(MatRef::row_major(&w, 64, 2), bits);
            let options = MatvecOptions {
                isa,
                ..Default::default()
            };
            let y = product(&[1.0; 64], 1, &q, &options);
            assert!(y[0].is_nan() && (y[1] - 64.0).abs() < 1.0);
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = [1.0; 64];
                x[40] = bad;
                assert!(product(&x, 1, &q, &options).iter().all(|y| y.is_nan()));
            }
        }
    }
}
