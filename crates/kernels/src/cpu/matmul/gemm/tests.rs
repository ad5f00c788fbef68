//! Compares products with a naive f64 implementation, for each instruction set of the machine.

use super::*;
use crate::cpu::matmul::matrix::{MatRef, extent, round_to_bf16};
use crate::cpu::par::with_threads;
use crate::cpu::testing::Rng;

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
        let data = rng.floats(extent(rows, cols, row_stride, col_stride));
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
    let start = rng.floats(m * c_stride);
    let bias = rng.floats(n);
    let accumulate = rng.below(2) == 1;
    let options = GemmOptions {
        accumulate,
        bias: (!accumulate && rng.below(2) == 1).then_some(&bias[..]),
        precision,
        isa,
    };
    let mut c = start.clone();
    with_threads(1 + rng.below(2), || {
        let c = &mut MatMut::new(&mut c, m, n, c_stride);
        gemm(a.view(), b.view(), c, &options);
    });
    let round = |v: f32| {
        if precision == Precision::Bf16 {
            round_to_bf16(v)
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
            let mut want = sum;
            if accumulate {
                want += f64::from(start[i * c_stride + j]);
            }
            want += options.bias.map_or(0.0, |bias| f64::from(bias[j]));
            let bound = (size + want.abs()) * 1e-6;
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
            let (a, b) = (rng.floats(m * k), rng.floats(k * n));
            let product = |rows: usize, threads| {
                let mut c = vec![0.0; rows * n];
                let options = GemmOptions {
                    precision,
                    ..GemmOptions::default()
                };
                let a = MatRef::row_major(&a[..rows * k], rows, k);
                let b = MatRef::row_major(&b, k, n);
                let out = &mut MatMut::row_major(&mut c, rows, n);
                with_threads(threads, || gemm(a, b, out, &options));
                c
            };
            let one = product(m, 1);
            assert_eq!(one, product(m, 2));
            assert_eq!(one, product(m, 5));
            // A row does not depend on the other rows either.
            assert_eq!(one[..29 * n], product(29, 2));
        }
    }
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
            round_to_bf16(value).to_bits(),
            f32::to_bits(want),
            "{value}"
        );
    }
    for nan in [0x7f80_0001, 0xffff_ffff] {
        assert!(round_to_bf16(f32::from_bits(nan)).is_nan());
    }
}

#[test]
fn an_update_has_the_bits_of_a_product_that_is_added_later() {
    let mut rng = Rng(23);
    let mut shapes = vec![(205, 1037, 70, 16), (300, 64, 1050, 8), (13, 515, 33, 600)];
    shapes.extend((0..60).map(|_| {
        let [m, k, n] = [(); 3].map(|()| 1 + rng.below(71));
        (m, k, n, 1 + rng.below(20))
    }));
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            for &(m, k, n, rank) in &shapes {
                let (a, b) = (rng.floats(m * k), RandomMatrix::random(&mut rng, k, n));
                let low = rng.floats(m * rank);
                let up = RandomMatrix::random(&mut rng, rank, n);
                let bias = rng.floats(n);
                let options = GemmOptions {
                    bias: (rng.below(2) == 1).then_some(&bias[..]),
                    precision,
                    isa,
                    ..GemmOptions::default()
                };
                let a = MatRef::row_major(&a, m, k);
                let low = MatRef::row_major(&low, m, rank);
                let mut expected = vec![f32::NAN; m * n];
                let c = &mut MatMut::row_major(&mut expected, m, n);
                gemm(a, b.view(), c, &options);
                let accumulate = GemmOptions {
                    accumulate: true,
                    isa,
                    ..GemmOptions::default()
                };
                gemm(low, up.view(), c, &accumulate);
                let mut found = vec![f32::NAN; m * n];
                with_threads(1 + rng.below(3), || {
                    let c = &mut MatMut::row_major(&mut found, m, n);
                    gemm_with_update(a, b.view(), (low, up.view()), c, &options);
                });
                let same = found
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{isa:?} {precision:?} {m}x{k}x{n}, rank {rank}");
            }
        }
    }
}
