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
use driver::Problem;
pub(crate) use driver::k_blocks;

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
    let problem = Problem {
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
    };
    // SAFETY: the shapes have been checked, and `c` is borrowed mutably, whose rows do not overlap
    // (`MatMut::new`).
    unsafe { problem.run() };
}
