//! Compares products with f64, and checks independence of rows and threads.

use super::*;
use crate::cpu::matmul::testing::Rng;

/// Computes the product with the kernel under test.
fn product(
    x: &[f32],
    rows: usize,
    w: MatRef<'_>,
    start: &[f32],
    options: &MatvecOptions<'_>,
) -> Vec<f32> {
    let mut y = start[..rows * w.cols].to_vec();
    let x = MatRef::row_major(&x[..rows * w.rows], rows, w.rows);
    matvec(x, w, &mut MatMut::row_major(&mut y, rows, w.cols), options);
    y
}

#[test]
fn random_shapes_match_f64() {
    for isa in Isa::available() {
        let mut rng = Rng(21);
        for case in 0..200 {
            let (m, k, n) = (1 + rng.below(9), rng.below(71), rng.below(141));
            let (x, w, start) = (rng.values(m * k), rng.values(k * n), rng.values(m * n));
            let bias = rng.values(n);
            let accumulate = case % 3 == 0;
            let bias = (case % 3 == 1).then_some(&bias[..]);
            let options = MatvecOptions {
                accumulate,
                bias,
                isa,
                ..Default::default()
            };
            let w = match case % 2 {
                0 => MatRef::row_major(&w, k, n),
                _ => MatRef::row_major(&w, n, k).t(),
            };
            let y = product(&x, m, w, &start, &options);
            for i in 0..m {
                for j in 0..n {
                    let mut want = if accumulate {
                        f64::from(start[i * n + j])
                    } else {
                        0.0
                    };
                    want += bias.map_or(0.0, |b| f64::from(b[j]));
                    for p in 0..k {
                        let w = w.data[p * w.row_stride + j * w.col_stride];
                        want += f64::from(x[i * k + p]) * f64::from(w);
                    }
                    assert!(
                        (f64::from(y[i * n + j]) - want).abs() < 2e-5,
                        "{isa:?} {m} {k} {n}"
                    );
                }
            }
        }
    }
}

#[test]
fn result_is_bitwise_independent_of_rows_and_threads() {
    for isa in Isa::available() {
        let mut rng = Rng(22);
        let (m, k, n) = (11, 261, 403);
        let (x, w) = (rng.values(m * k), rng.values(k * n));
        let zeros = vec![0.0; m * n];
        for w in [MatRef::row_major(&w, k, n), MatRef::row_major(&w, n, k).t()] {
            let single = MatvecOptions {
                threads: Threads::Max(1),
                isa,
                ..Default::default()
            };
            let all = product(&x, m, w, &zeros, &single);
            for rows in 1..=m {
                for threads in [Threads::Max(1), Threads::Max(2), Threads::Pool] {
                    let options = MatvecOptions {
                        threads,
                        isa,
                        ..Default::default()
                    };
                    assert_eq!(product(&x, rows, w, &zeros, &options), all[..rows * n]);
                }
            }
            // A single row, regardless of its position in the batch.
            let last = product(&x[(m - 1) * k..], 1, w, &zeros, &single);
            assert_eq!(last, all[(m - 1) * n..]);
        }
    }
}

#[test]
fn columns_are_bitwise_independent_of_matrix_size() {
    for isa in Isa::available() {
        let mut rng = Rng(24);
        let (m, k, n) = (19, 261, 803);
        assert!(k * n * 4 > CACHE_BLOCK_BYTES && k * 401 * 4 < CACHE_BLOCK_BYTES);
        let (x, w, bias) = (rng.values(m * k), rng.values(k * n), rng.values(n));
        let options = |from: usize, to: usize| MatvecOptions {
            bias: bias.get(from..to),
            isa,
            ..Default::default()
        };
        let zeros = vec![0.0; m * n];
        let all = product(&x, m, MatRef::row_major(&w, k, n), &zeros, &options(0, n));
        for (from, to) in [(0, 401), (401, 803), (7, 8)] {
            let part = MatRef::new(&w[from..], k, to - from, n, 1);
            let part = product(&x, m, part, &zeros, &options(from, to));
            for row in 0..m {
                let (part, all) = (&part[row * (to - from)..], &all[row * n..]);
                assert_eq!(part[..to - from], all[from..to], "{isa:?} row {row}");
            }
        }
    }
}

#[test]
fn other_strides_fall_back_to_gemm() {
    let mut rng = Rng(23);
    let (x, w) = (rng.values(2 * 5), rng.values(2 * 5 * 7));
    let strided = MatRef::new(&w, 5, 7, 14, 2);
    let dense: Vec<f32> = w.iter().copied().step_by(2).collect();
    let options = MatvecOptions::default();
    let got = product(&x, 2, strided, &[0.0; 14], &options);
    let want = product(&x, 2, MatRef::row_major(&dense, 5, 7), &[0.0; 14], &options);
    assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5));
}

/// A column longer than a cache block, with more rows than one pass handles.
#[test]
fn columns_longer_than_a_cache_block_match() {
    let (m, k, n) = (ROWS + 1, CACHE_BLOCK_BYTES / size_of::<f32>() + 1, 2);
    let (x, w) = (vec![1.0; m * k], vec![1.0; k * n]);
    let w = MatRef::row_major(&w, k, n);
    let y = product(&x, m, w, &[0.0; 2 * (ROWS + 1)], &MatvecOptions::default());
    assert!(
        y.iter().all(|y| y.to_bits() == (k as f32).to_bits()),
        "{y:?}"
    );
}
