//! The backward pass of products with quantized weights: `dx = dy W^T`.
//!
//! Blocks of columns are dequantized into a scratch buffer and multiplied as floats, so that the gradient is that
//! of the weights that the forward pass used.

use super::QuantMatrix;
use crate::cpu::matmul::gemm::{GemmOptions, gemm, gemm_with_update};
use crate::cpu::matmul::matrix::{MatMut, MatRef};
use crate::cpu::par::{self, Shared};
use crate::cpu::scratch::with_call_scratch;

/// Columns that are dequantized at a time. Sums along the columns are added up block by block in this order, whatever
/// the number of rows and threads.
const COLUMNS: usize = 512;

/// Approximate number of basic operations to dequantize a value.
const OPS_PER_VALUE: usize = 2;

/// Computes `dx = dy * w^T`, plus the product of the matrices `update`, if there are any: `dy` is rows by n, `dx` is
/// rows by k.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn matmul_quant_transposed(
    dy: MatRef<'_>,
    w: &QuantMatrix,
    update: Option<[MatRef<'_>; 2]>,
    dx: &mut MatMut<'_>,
) {
    let (k, n) = w.shape();
    assert_eq!(
        (dy.cols, dx.rows, dx.cols),
        (n, dy.rows, k),
        "shapes differ"
    );
    if n == 0 {
        dx.data.fill(0.0);
    }
    with_call_scratch(COLUMNS.min(n) * k, |columns: &mut [f32]| {
        for first in (0..n).step_by(COLUMNS) {
            let count = COLUMNS.min(n - first);
            let columns = &mut columns[..count * k];
            w.dequantize_columns(first, columns);
            let dy = MatRef::new(
                &dy.data[first * dy.col_stride..],
                dy.rows,
                count,
                dy.row_stride,
                dy.col_stride,
            );
            let options = GemmOptions {
                accumulate: first > 0,
                ..GemmOptions::default()
            };
            let columns = MatRef::row_major(columns, count, k);
            match update.filter(|_| first + count == n) {
                Some([low, up]) => gemm_with_update(dy, columns, (low, up), dx, &options),
                None => gemm(dy, columns, dx, &options),
            }
        }
    });
}

impl QuantMatrix {
    /// Writes the values of the columns from `first` on, one after the other, to `columns`.
    fn dequantize_columns(&self, first: usize, columns: &mut [f32]) {
        let k = self.k;
        let Some(count) = columns.len().checked_div(k) else {
            return;
        };
        assert!(first + count <= self.n && columns.len() == count * k);
        let columns = Shared::new(columns);
        par::for_each(count, k * OPS_PER_VALUE, |j| {
            // SAFETY: each column is within the slice and used by one task only.
            let column = unsafe { columns.slice(j * k, k) };
            self.dequantize_column(first + j, column);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockFormat;
    use crate::cpu::matmul::quant::tests::random_blocks;
    use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads};

    #[test]
    fn the_transposed_product_uses_the_dequantized_values() {
        let mut rng = Rng(5);
        for round in 0..40 {
            let (k, n) = (
                1 + rng.below(80),
                1 + rng.below(if round % 8 == 0 { 1100 } else { 60 }),
            );
            let rows = 1 + rng.below(12);
            let format = rng.pick(&BlockFormat::ALL);
            let (k, w) = if format.separate_integers().is_some() {
                let values = rng.floats(k * n);
                let values = MatRef::row_major(&values, k, n);
                (k, QuantMatrix::quantize_as(values, format))
            } else {
                (256, random_blocks(&mut rng, 256, n, format))
            };
            let values = (0..k * n).map(|i| w.value(i / n, i % n).abs());
            let largest = values.fold(1.0, f32::max);
            let dy = rng.floats(rows * n);
            let dy: Vec<f32> = dy.iter().map(|value| value / largest).collect();
            let product = || {
                let mut dx = vec![f32::NAN; rows * k];
                let dy = MatRef::row_major(&dy, rows, n);
                matmul_quant_transposed(dy, &w, None, &mut MatMut::row_major(&mut dx, rows, k));
                dx
            };
            let dx = assert_same_for_any_threads(product);
            let element = |i: usize| {
                let terms =
                    (0..n).map(|j| f64::from(dy[i / k * n + j]) * f64::from(w.value(i % k, j)));
                terms.sum::<f64>()
            };
            let expected: Vec<f64> = (0..rows * k).map(element).collect();
            assert_close(
                &dx,
                &expected,
                1e-4,
                &format!("{format:?} {rows} x {k} x {n}"),
            );
        }
    }

    #[test]
    fn columns_are_dequantized_to_the_bits_of_single_values() {
        let mut rng = Rng(9);
        for format in BlockFormat::ALL {
            let n = 37;
            let (k, w) = if format.separate_integers().is_some() {
                let values = rng.floats(70 * n);
                let values = MatRef::row_major(&values, 70, n);
                (70, QuantMatrix::quantize_as(values, format))
            } else {
                (512, random_blocks(&mut rng, 512, n, format))
            };
            let mut columns = vec![0.0; k * (n - 3)];
            w.dequantize_columns(3, &mut columns);
            let expected = (3..n).flat_map(|j| (0..k).map(move |i| (i, j)));
            let expected = expected.map(|(i, j)| w.value(i, j).to_bits());
            assert!(
                columns.iter().map(|v| v.to_bits()).eq(expected),
                "{format:?}"
            );
        }
    }
}
