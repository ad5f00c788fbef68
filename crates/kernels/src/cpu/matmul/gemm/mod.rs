//! General matrix multiplication: `C = A * B`, plus C or a bias row.
//!
//! Each element is summed along k in a fixed order: in blocks whose length depends only on `k`, and
//! from first to last within a block. So the result is bitwise identical for any number of threads,
//! and a row does not depend on the other rows.

mod block;
mod driver;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
#[cfg(test)]
mod tests;
mod tile;

use crate::Precision;
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::{MatMut, MatRef};
use crate::cpu::par::Shared;
pub(crate) use driver::k_blocks;
use driver::{Problem, Update};

/// Options of [`gemm`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmOptions<'a> {
    /// Whether to add to C instead of overwriting it.
    pub(crate) accumulate: bool,
    /// Bias added to each row of the result. Excludes `accumulate`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Input precision.
    pub(crate) precision: Precision,
    /// Highest instruction set to use. Tests set it below the machine's.
    pub(crate) isa: Isa,
}

impl Default for GemmOptions<'_> {
    fn default() -> Self {
        Self {
            accumulate: false,
            bias: None,
            precision: Precision::F32,
            isa: Isa::current(),
        }
    }
}

/// Computes `C = A * B`, plus C or the bias.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn gemm(a: MatRef<'_>, b: MatRef<'_>, c: &mut MatMut<'_>, options: &GemmOptions<'_>) {
    let problem = problem(a, b, c, options);
    // SAFETY: the shapes have been checked, and `c` is borrowed mutably, whose rows do not overlap
    // (`MatMut::new`).
    unsafe { problem.run() };
}

/// Computes `C = A * B` with `options`, plus `low * up` in f32: a product over a short dimension, which takes as long
/// as to read and write C if it is not done together with the first. The bits are those of two products, one after the
/// other.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn gemm_with_update(
    a: MatRef<'_>,
    b: MatRef<'_>,
    (low, up): (MatRef<'_>, MatRef<'_>),
    c: &mut MatMut<'_>,
    options: &GemmOptions<'_>,
) {
    let rank = low.cols;
    assert_eq!(
        [low.rows, up.rows, up.cols],
        [a.rows, rank, b.cols],
        "shapes of the update"
    );
    let both = Problem {
        update: Some(Update { a: low, b: up }),
        ..problem(a, b, c, options)
    };
    if both.reads_a_directly() && low.col_stride == 1 && k_blocks(rank).1 == 1 {
        // SAFETY: as for `gemm`; the shapes of the update have been checked too.
        return unsafe { both.run() };
    }
    gemm(a, b, c, options);
    let options = GemmOptions {
        accumulate: true,
        isa: options.isa,
        ..GemmOptions::default()
    };
    gemm(low, up, c, &options);
}

/// The problem of a product. It may run as long as `c` is borrowed.
///
/// # Panics
/// If the shapes do not match.
fn problem<'a>(
    a: MatRef<'a>,
    b: MatRef<'a>,
    c: &mut MatMut<'_>,
    options: &GemmOptions<'a>,
) -> Problem<'a> {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner dimensions differ");
    assert_eq!((c.rows, c.cols), (m, n), "result shape");
    assert!(
        options.bias.is_none_or(|bias| bias.len() == n),
        "bias length"
    );
    assert!(
        options.bias.is_none() || !options.accumulate,
        "bias and accumulate are mutually exclusive"
    );
    let bf16 = options.precision == Precision::Bf16;
    let isa = options.isa.clamp_to_current();
    let kernel = if bf16 {
        tile::bf16_microkernel(isa)
    } else {
        tile::f32_microkernel(isa)
    };
    Problem {
        m,
        n,
        k,
        a,
        b,
        c: Shared::new(c.data),
        c_stride: c.row_stride,
        accumulate: options.accumulate,
        bias: options.bias,
        bf16,
        kernel,
        isa,
        update: None,
    }
}
