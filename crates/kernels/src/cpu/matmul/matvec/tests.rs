//! Compares products with f64, and checks independence of rows and threads.

use super::*;
use crate::cpu::par::with_threads;
use crate::cpu::testing::Rng;

/// Computes the product with the kernel under test.
fn product(x: &[f32], rows: usize, w: MatRef<'_>, options: &MatvecOptions<'_>) -> Vec<f32> {
    let mut y = vec![f32::NAN; rows * w.cols];
    let x = MatRef::row_major(&x[..rows * w.rows], rows, w.rows);
    matvec(x, w, &mut MatMut::row_major(&mut y, rows, w.cols), options);
    y
}

#[test]
fn random_shapes_match_f64() {
    for isa in Isa::available() {
        let mut rng = Rng(21);
        for case in 0..200 {
            let m = 1 + rng.below(if case % 5 == 4 { 40 } else { 9 });
            let (k, n) = (rng.below(71), rng.below(141));
            let (x, w, bias) = (rng.floats(m * k), rng.floats(k * n), rng.floats(n));
            let bias = (case % 3 == 1).then_some(&bias[..]);
            let options = MatvecOptions { bias, isa };
            let w = match case % 2 {
                0 => MatRef::row_major(&w, k, n),
                _ => MatRef::row_major(&w, n, k).t(),
            };
            let y = product(&x, m, w, &options);
            for i in 0..m {
                for j in 0..n {
                    let mut want = bias.map_or(0.0, |b| f64::from(b[j]));
                    let mut size = want.abs();
                    for p in 0..k {
                        let w = w.data[p * w.row_stride + j * w.col_stride];
                        let term = f64::from(x[i * k + p]) * f64::from(w);
                        want += term;
                        size += term.abs();
                    }
                    let error = (f64::from(y[i * n + j]) - want).abs();
                    assert!(error <= size * 1e-6, "{isa:?} {m} {k} {n}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn result_is_bitwise_independent_of_rows_and_threads() {
    for isa in Isa::available() {
        let mut rng = Rng(22);
        let (m, k, n) = (23, 261, 403);
        let (x, w) = (rng.floats(m * k), rng.floats(k * n));
        let options = MatvecOptions { bias: None, isa };
        for w in [MatRef::row_major(&w, k, n), MatRef::row_major(&w, n, k).t()] {
            let all = with_threads(1, || product(&x, m, w, &options));
            for rows in 1..=m {
                for threads in [1, 2, 5] {
                    let part = with_threads(threads, || product(&x, rows, w, &options));
                    assert_eq!(part, all[..rows * n]);
                }
            }
            // A single row, regardless of its position in the batch.
            let last = product(&x[(m - 1) * k..], 1, w, &options);
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
        let (x, w, bias) = (rng.floats(m * k), rng.floats(k * n), rng.floats(n));
        let options = |from: usize, to: usize| MatvecOptions {
            bias: bias.get(from..to),
            isa,
        };
        let all = product(&x, m, MatRef::row_major(&w, k, n), &options(0, n));
        for (from, to) in [(0, 401), (401, 803), (7, 8)] {
            let part = MatRef::new(&w[from..], k, to - from, n, 1);
            let part = product(&x, m, part, &options(from, to));
            for row in 0..m {
                let (part, all) = (&part[row * (to - from)..], &all[row * n..]);
                assert_eq!(part[..to - from], all[from..to], "{isa:?} row {row}");
            }
        }
    }
}

/// A column longer than a cache block, with more rows than one pass handles.
#[test]
fn columns_longer_than_a_cache_block_match() {
    for m in [ROWS + 1, MIN_PACKED_ROWS] {
        let (k, n) = (CACHE_BLOCK_BYTES / size_of::<f32>() + 1, 2);
        let (x, w) = (vec![1.0; m * k], vec![1.0; k * n]);
        let w = MatRef::row_major(&w, k, n);
        let y = product(&x, m, w, &MatvecOptions::default());
        assert!(
            y.iter().all(|y| y.to_bits() == (k as f32).to_bits()),
            "{y:?}"
        );
    }
}
