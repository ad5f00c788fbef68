//! `C = G^T X` for a `G` of few columns, without packing.
//!
//! The gradients of a low-rank update are such products: packing `X`, as [`gemm`](super::gemm()) does, takes more time
//! than to multiply it by few columns. Here both are read row by row, while the sums stay in a cache. Each element is
//! added up in the order of `gemm`, and has the same bits.

use std::ops::Range;

use pulp::Simd;

use super::k_blocks;
use crate::cpu::par::{self, Shared};
use crate::cpu::scratch::with_task_scratch;
use crate::cpu::simd::{Ops, dispatch, load_part};

/// Number of columns of `G` that share the registers of a tile.
const TILE: usize = 4;

/// Rows that are added to a tile at a time, between loading its sums and storing them. Few, so that these rows stay in
/// the L1 cache for all tiles.
const ROWS: usize = 16;

/// Rows of sums start at multiples of this many elements: at least a register.
const ALIGNMENT: usize = 64;

/// The operands: `g` is `[rows, m]`, `x` is `[rows, n]`.
#[derive(Clone, Copy, Debug)]
struct Operands<'a> {
    g: &'a [f32],
    x: &'a [f32],
    rows: usize,
    m: usize,
    n: usize,
}

/// A part of the rows and columns of `x`.
#[derive(Clone, Copy, Debug)]
struct Part {
    first_row: usize,
    rows: usize,
    first_col: usize,
    cols: usize,
}

/// Computes `c = g^T x`: `g` is `[rows, m]`, `x` is `[rows, n]` and `c` is `[m, n]`, all row-major.
///
/// # Panics
/// If the lengths do not match.
pub(crate) fn transposed_product(
    rows: usize,
    (g, m): (&[f32], usize),
    (x, n): (&[f32], usize),
    c: &mut [f32],
) {
    assert_eq!(
        [Some(g.len()), Some(x.len()), Some(c.len())],
        [rows.checked_mul(m), rows.checked_mul(n), m.checked_mul(n)],
        "the operands do not have {rows} rows of {m} and {n} columns"
    );
    let operands = Operands { g, x, rows, m, n };
    // An element does not depend on the task that computes it.
    let width = n.div_ceil(2 * par::threads()).next_multiple_of(ALIGNMENT);
    let cost = rows.saturating_mul(m).saturating_mul(width.min(n));
    let c = Shared::new(c);
    par::for_each(n.div_ceil(width.max(1)), cost, |task| {
        let cols = task * width..n.min((task + 1) * width);
        with_task_scratch(m * cols.len().next_multiple_of(ALIGNMENT), |sums| {
            operands.sum_columns(&cols, sums, c);
        });
    });
}

impl Operands<'_> {
    /// Computes the columns `cols` of `c`, which no other task accesses.
    fn sum_columns(&self, cols: &Range<usize>, sums: &mut [f32], c: Shared<f32>) {
        let stride = cols.len().next_multiple_of(ALIGNMENT);
        let (block_rows, blocks) = k_blocks(self.rows);
        for block in 0..blocks {
            sums.fill(0.0);
            let end = self.rows.min((block + 1) * block_rows);
            for first_row in (block * block_rows..end).step_by(ROWS) {
                let part = Part {
                    first_row,
                    rows: ROWS.min(end - first_row),
                    first_col: cols.start,
                    cols: cols.len(),
                };
                add_rows(*self, part, sums);
            }
            for (i, sums) in sums.chunks_exact(stride.max(1)).enumerate() {
                // SAFETY: `c` has `m` rows of `n` elements, and only this task accesses these columns.
                let row = unsafe { c.slice(i * self.n + cols.start, cols.len()) };
                for (c, sum) in row.iter_mut().zip(sums) {
                    *c = sum + if block > 0 { *c } else { 0.0 };
                }
            }
        }
    }
}

dispatch!(fn add_rows(operands: Operands<'_>, part: Part, sums: &mut [f32]) => body);

/// Adds the products of the rows of `part` to the sums of its columns.
#[inline(always)]
fn body<S: Simd>(s: S, operands: Operands<'_>, part: Part, sums: &mut [f32]) {
    const { assert!(S::LANES <= ALIGNMENT) };
    let Operands { g, x, rows, m, n } = operands;
    let stride = part.cols.next_multiple_of(ALIGNMENT);
    assert!(part.first_row + part.rows <= rows && part.first_col + part.cols <= n);
    assert!(g.len() == rows * m && x.len() == rows * n && sums.len() >= m * stride);
    let mut j = 0;
    while j < part.cols {
        let left = part.cols - j;
        // SAFETY: rows and columns are within both operands and the sums, whose rows are padded to whole registers; a
        // strip of two registers has as many columns, and one with a part ends with the last column.
        unsafe {
            let strip = Strip {
                g: g.as_ptr().add(part.first_row * m),
                x: x.as_ptr().add(part.first_row * n + part.first_col + j),
                sums: sums.as_mut_ptr().add(j),
                rows: part.rows,
                strides: [m, n, stride],
            };
            if left >= 2 * S::LANES {
                strip.add::<S, 2>(s, None);
                j += 2 * S::LANES;
            } else {
                strip.add::<S, 1>(s, (left < S::LANES).then_some(left));
                j += S::LANES;
            }
        }
    }
}

/// One or two registers of columns.
struct Strip {
    g: *const f32,
    x: *const f32,
    sums: *mut f32,
    rows: usize,
    /// Distances between the rows of `g`, `x` and the sums.
    strides: [usize; 3],
}

impl Strip {
    /// Adds the products with all columns of `g`. `part` is the number of columns of a partial register.
    ///
    /// # Safety
    /// The pointers must be valid for all rows and for the columns of `NV` registers, of which the last may be partial
    /// in `x`, and the machine must support the instruction set.
    #[inline(always)]
    unsafe fn add<S: Simd, const NV: usize>(&self, s: S, part: Option<usize>) {
        let m = self.strides[0];
        let mut i = 0;
        while i < m {
            // SAFETY: the caller guarantees the contract, and these columns of `g` are below `m`.
            unsafe {
                match m - i {
                    1 => self.tile::<S, 1, NV>(s, i, part),
                    2 => self.tile::<S, 2, NV>(s, i, part),
                    3 => self.tile::<S, 3, NV>(s, i, part),
                    _ => self.tile::<S, TILE, NV>(s, i, part),
                }
            }
            i += TILE;
        }
    }

    /// Adds the products with `MR` columns of `g` from `first` on, in registers.
    ///
    /// # Safety
    /// As for [`add`](Self::add); `first + MR` must not exceed the columns of `g`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(
        &self,
        s: S,
        first: usize,
        part: Option<usize>,
    ) {
        let [m, n, stride] = self.strides;
        // SAFETY: the caller guarantees that these rows and columns are valid.
        unsafe {
            let sums = self.sums.add(first * stride);
            let mut acc = [[s.zero(); NV]; MR];
            for i in 0..MR {
                for v in 0..NV {
                    acc[i][v] = s.load(sums.add(i * stride + v * S::LANES));
                }
            }
            for row in 0..self.rows {
                let (g, x) = (self.g.add(row * m + first), self.x.add(row * n));
                let mut values = [s.zero(); NV];
                for v in 0..NV {
                    values[v] = load_part(s, x, v * S::LANES, part);
                }
                for i in 0..MR {
                    let factor = s.splat_f32s(*g.add(i));
                    for v in 0..NV {
                        acc[i][v] = s.fma(factor, values[v], acc[i][v]);
                    }
                }
            }
            for i in 0..MR {
                for v in 0..NV {
                    s.store(sums.add(i * stride + v * S::LANES), acc[i][v]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::matmul::{GemmOptions, MatMut, MatRef, gemm};
    use crate::cpu::par::with_threads;
    use crate::cpu::testing::Rng;

    #[test]
    fn the_product_has_the_bits_of_the_general_one_for_any_number_of_threads() {
        let mut rng = Rng(17);
        let mut shapes = vec![
            (1300, 16, 200),
            (700, 5, 70),
            (0, 3, 9),
            (40, 0, 5),
            (9, 4, 0),
        ];
        shapes.extend((0..60).map(|_| (rng.below(60), 1 + rng.below(20), 1 + rng.below(150))));
        for (rows, m, n) in shapes {
            let (g, x) = (rng.floats(rows * m), rng.floats(rows * n));
            let mut expected = vec![f32::NAN; m * n];
            gemm(
                MatRef::row_major(&g, rows, m).t(),
                MatRef::row_major(&x, rows, n),
                &mut MatMut::row_major(&mut expected, m, n),
                &GemmOptions::default(),
            );
            for threads in [1, 2, 5] {
                let mut c = vec![f32::NAN; m * n];
                with_threads(threads, || {
                    transposed_product(rows, (&g, m), (&x, n), &mut c);
                });
                let same = c
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{rows} rows of {m} and {n}, {threads} threads");
            }
        }
    }
}
