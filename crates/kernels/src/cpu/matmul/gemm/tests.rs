//! Compares products with a naive f64 implementation, for each instruction set of the machine.

use super::*;
use crate::cpu::matmul::matrix::{Bf16, MatRef};
use crate::cpu::matmul::testing::Rng;

/// A random matrix with random strides.
struct RandomMatrix {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl RandomMatrix {
    fn random(rng: &mut Rng, rows: usize, cols: usize) -> Self {
        let gap = rng.below(4);
        let (row_stride, col_stride) = match rng.below(4) {
            0 => (cols + gap, 1),
            1 => (1, rows + gap),
            2 => (2 * cols + gap, 2),
            _ => (cols, 1),
        };
        let data = rng.values(extent(rows, cols, row_stride, col_stride));
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    fn view(&self) -> MatRef<'_> {
        MatRef::new(
            &self.data,
            self.rows,
            self.cols,
            self.row_stride,
            self.col_stride,
        )
    }

    fn get(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }
}

/// Compares one random product with f64, with inputs rounded to `precision`.
fn check(rng: &mut Rng, (m, k, n): (usize, usize, usize), precision: Precision, isa: Isa) {
    let (a, b) = (
        RandomMatrix::random(rng, m, k),
        RandomMatrix::random(rng, k, n),
    );
    let c_stride = n + rng.below(3);
    let start = rng.values(m * c_stride);
    let bias = rng.values(n);
    let accumulate = rng.below(2) == 1;
    let options = GemmOptions {
        alpha: if rng.below(2) == 1 { 0.5 } else { 1.0 },
        accumulate,
        bias: (!accumulate && rng.below(2) == 1).then_some(&bias[..]),
        precision,
        threads: Threads::Max(1 + rng.below(2)),
        isa,
    };
    let mut c = start.clone();
    gemm(
        a.view(),
        b.view(),
        &mut MatMut::new(&mut c, m, n, c_stride),
        &options,
    );
    let round = |v: f32| {
        if precision == Precision::Bf16 {
            Bf16::from_f32(v).to_f32()
        } else {
            v
        }
    };
    for i in 0..m {
        for j in 0..c_stride {
            let got = f64::from(c[i * c_stride + j]);
            if j >= n {
                let before = start[i * c_stride + j];
                assert_eq!(
                    c[i * c_stride + j].to_bits(),
                    before.to_bits(),
                    "gap between rows"
                );
                continue;
            }
            let (mut sum, mut size) = (0.0, 0.0);
            for p in 0..k {
                let term = f64::from(round(a.get(i, p))) * f64::from(round(b.get(p, j)));
                sum += term;
                size += term.abs();
            }
            let mut want = f64::from(options.alpha) * sum;
            if accumulate {
                want += f64::from(start[i * c_stride + j]);
            }
            want += options.bias.map_or(0.0, |bias| f64::from(bias[j]));
            let bound = (size + want.abs() + 1.0) * 1e-6;
            assert!(
                (got - want).abs() <= bound,
                "{isa:?} {m}x{k}x{n} ({i},{j}): {got} {want}"
            );
        }
    }
}

#[test]
fn random_shapes_match_f64() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut rng = Rng(7);
            for _ in 0..150 {
                let shape = (rng.below(71), rng.below(71), rng.below(71));
                check(&mut rng, shape, precision, isa);
            }
            // Several blocks of rows, columns and k.
            check(&mut rng, (205, 1037, 70), precision, isa);
            check(&mut rng, (13, 515, 1050), precision, isa);
        }
    }
}

#[test]
fn all_tile_sizes_match_f64() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut rng = Rng(11);
            for m in 1..=14 {
                for n in [1, 5, 8, 15, 16, 17, 31, 32, 33] {
                    check(&mut rng, (m, 9, n), precision, isa);
                }
            }
        }
    }
}

#[test]
fn result_is_bitwise_independent_of_threads_and_rows() {
    let mut rng = Rng(3);
    for precision in [Precision::F32, Precision::Bf16] {
        for (m, k, n) in [(300, 700, 130), (64, 1200, 600), (130, 64, 900)] {
            let (a, b) = (rng.values(m * k), rng.values(k * n));
            let product = |rows: usize, threads| {
                let mut c = vec![0.0; rows * n];
                let options = GemmOptions {
                    precision,
                    threads,
                    ..GemmOptions::default()
                };
                gemm(
                    MatRef::row_major(&a[..rows * k], rows, k),
                    MatRef::row_major(&b, k, n),
                    &mut MatMut::row_major(&mut c, rows, n),
                    &options,
                );
                c
            };
            let one = product(m, Threads::Max(1));
            assert_eq!(one, product(m, Threads::Max(2)));
            assert_eq!(one, product(m, Threads::Pool));
            // A row does not depend on the other rows either.
            assert_eq!(one[..29 * n], product(29, Threads::Max(2)));
        }
    }
}

#[test]
fn bf16_storage_equals_rounding_while_packing() {
    let mut rng = Rng(5);
    for isa in Isa::available() {
        for (m, k, n) in [(7, 33, 40), (50, 65, 17), (1, 1, 1)] {
            let (a, b) = (rng.values(m * k), rng.values(k * n));
            let to_bf16 = |v: &[f32]| v.iter().map(|&v| Bf16::from_f32(v)).collect::<Vec<_>>();
            let (a16, b16) = (to_bf16(&a), to_bf16(&b));
            let options = GemmOptions {
                precision: Precision::Bf16,
                isa,
                ..Default::default()
            };
            let (mut c, mut c16) = (vec![0.0; m * n], vec![0.0; m * n]);
            let out = |c| MatMut::row_major(c, m, n);
            let (x, w) = (MatRef::new(&a, m, k, 1, m), MatRef::new(&b, k, n, 1, k));
            gemm(x, w, &mut out(&mut c), &options);
            let (x, w) = (MatRef::new(&a16, m, k, 1, m), MatRef::new(&b16, k, n, 1, k));
            gemm(x, w, &mut out(&mut c16), &options);
            assert_eq!(c, c16);
        }
    }
}

#[test]
fn batch_with_interleaved_heads_matches_reference() {
    let mut rng = Rng(9);
    // Two sequences of five tokens, three heads of four: q, k and the result interleaved.
    let (seqs, tokens, heads, width) = (2, 5, 3, 4);
    let d = heads * width;
    let (q, k) = (rng.values(seqs * tokens * d), rng.values(seqs * tokens * d));
    let mut scores = vec![0.0; seqs * heads * tokens * tokens];
    let batch = Batch {
        count: [seqs, heads],
        a: [tokens * d, width],
        b: [tokens * d, width],
        c: [heads * tokens * tokens, tokens * tokens],
    };
    let view = |x| MatRef::new(x, tokens, width, d, 1);
    let mut c = MatMut::new(&mut scores, tokens, tokens, tokens);
    gemm_batched(
        view(&q),
        view(&k).t(),
        &mut c,
        &batch,
        &GemmOptions::default(),
    );
    for s in 0..seqs {
        for h in 0..heads {
            for i in 0..tokens {
                for j in 0..tokens {
                    let element =
                        |x: &[f32], t: usize, w: usize| x[(s * tokens + t) * d + h * width + w];
                    let want: f32 = (0..width)
                        .map(|w| element(&q, i, w) * element(&k, j, w))
                        .sum();
                    let got = scores[((s * heads + h) * tokens + i) * tokens + j];
                    assert!((got - want).abs() < 1e-5);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "must not overlap")]
fn overlapping_batch_results_panic() {
    let x = [0.0; 64];
    let mut c = [0.0; 64];
    let batch = Batch {
        count: [1, 2],
        a: [0, 0],
        b: [0, 0],
        c: [0, 3],
    };
    let m = MatRef::row_major(&x, 4, 4);
    gemm_batched(
        m,
        m,
        &mut MatMut::new(&mut c, 4, 4, 8),
        &batch,
        &GemmOptions::default(),
    );
}

#[test]
fn bf16_rounds_to_nearest_even_and_keeps_nan() {
    for (value, want) in [
        (1.0, 1.0),
        (1.0 + 1.0 / 256.0, 1.0),
        (1.0 + 3.0 / 256.0, 1.015_625),
        (f32::INFINITY, f32::INFINITY),
        (f32::MAX, f32::INFINITY),
        (-0.0, -0.0),
    ] {
        assert_eq!(
            Bf16::from_f32(value).to_f32().to_bits(),
            f32::to_bits(want),
            "{value}"
        );
    }
    assert!(
        Bf16::from_f32(f32::from_bits(0x7f80_0001))
            .to_f32()
            .is_nan()
    );
    assert!(
        Bf16::from_f32(f32::from_bits(0xffff_ffff))
            .to_f32()
            .is_nan()
    );
}
