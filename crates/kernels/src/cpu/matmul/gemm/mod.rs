//! General matrix multiplication: `C = alpha * A * B`, plus C or a bias row.
//!
//! Each element is summed along k in a fixed order: in blocks whose length depends only on `k`, and
//! from first to last within a block. So the result is bitwise identical for any number of threads,
//! and a row does not depend on the other rows.

mod driver;
mod operand;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
#[cfg(test)]
mod tests;
mod tile;

pub use operand::Operand;
pub(crate) use pack::PanelLayout;
pub(crate) use tile::Format;

use crate::cpu::matmul::isa::Isa;
use crate::cpu::matmul::matrix::{MatMut, extent};
use crate::cpu::matmul::par::{SharedMut, Threads};
use driver::{Item, Problem};

/// Input precision of a product. Accumulation is always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 inputs.
    #[default]
    F32,
    /// Inputs rounded to bf16, ties to even.
    Bf16,
}

/// Options of [`gemm`].
#[derive(Clone, Copy, Debug)]
pub struct GemmOptions<'a> {
    /// Scale factor of the product.
    pub alpha: f32,
    /// Whether to add to C instead of overwriting it.
    pub accumulate: bool,
    /// Bias added to each row of the result. Excludes `accumulate`.
    pub bias: Option<&'a [f32]>,
    /// Input precision.
    pub precision: Precision,
    /// Maximum number of threads; does not affect the result.
    pub threads: Threads,
    /// Highest instruction set to use. Tests set it below the machine's.
    pub isa: Isa,
}

impl Default for GemmOptions<'_> {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            accumulate: false,
            bias: None,
            precision: Precision::F32,
            threads: Threads::Pool,
            isa: Isa::detect(),
        }
    }
}

/// Computes `C = alpha * A * B`, plus C or the bias.
///
/// # Panics
/// If the shapes do not match.
pub fn gemm<'a>(
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    c: &mut MatMut<'_>,
    options: &GemmOptions<'_>,
) {
    let (a, b): (Operand<'_>, Operand<'_>) = (a.into(), b.into());
    assert_eq!((c.rows, c.cols), (a.shape().0, b.shape().1), "result shape");
    let pointer = SharedMut::new(c.data.as_mut_ptr());
    let c_stride = c.row_stride;
    let item = |_| Item {
        a,
        b,
        c: pointer,
        c_stride,
    };
    launch(&item, 1, options);
}

/// Layout of the operands and results of a batch with two dimensions, such as sequence and head.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Number of items in the outer and the inner dimension.
    pub count: [usize; 2],
    /// Strides of A in each dimension, in elements.
    pub a: [usize; 2],
    /// Strides of B.
    pub b: [usize; 2],
    /// Strides of C. Items must not overlap.
    pub c: [usize; 2],
}

/// Computes [`gemm`] for a batch of products. `a`, `b` and `c` describe the first item, with slices
/// that cover the whole batch.
///
/// # Panics
/// If the shapes do not match, an item lies outside its slice, or results overlap.
pub fn gemm_batched(
    a: crate::cpu::matmul::matrix::MatRef<'_>,
    b: crate::cpu::matmul::matrix::MatRef<'_>,
    c: &mut MatMut<'_>,
    batch: &Batch,
    options: &GemmOptions<'_>,
) {
    let [outer, inner] = batch.count;
    if outer * inner == 0 {
        return;
    }
    assert_eq!((c.rows, c.cols), (a.rows, b.cols), "result shape");
    assert!(is_disjoint(c, batch), "batch results must not overlap");
    let last = |s: [usize; 2]| (outer - 1) * s[0] + (inner - 1) * s[1];
    assert!(last(batch.c) + extent(c.rows, c.cols, c.row_stride, 1) <= c.data.len());
    let pointer = SharedMut::new(c.data.as_mut_ptr());
    let c_stride = c.row_stride;
    let item = |i: usize| {
        let offset = |s: [usize; 2]| i / inner * s[0] + i % inner * s[1];
        Item {
            a: offset_view(a, offset(batch.a)).into(),
            b: offset_view(b, offset(batch.b)).into(),
            c: SharedMut::new(pointer.get().wrapping_add(offset(batch.c))),
            c_stride,
        }
    };
    launch(&item, outer * inner, options);
}

/// Returns the view shifted by `offset` elements.
fn offset_view(
    m: crate::cpu::matmul::matrix::MatRef<'_>,
    offset: usize,
) -> crate::cpu::matmul::matrix::MatRef<'_> {
    crate::cpu::matmul::matrix::MatRef::new(
        &m.data[offset..],
        m.rows,
        m.cols,
        m.row_stride,
        m.col_stride,
    )
}

/// Returns whether no two items of a batch share an element of C: sorted by stride, each dimension's
/// stride must exceed the span of all smaller ones.
fn is_disjoint(c: &MatMut<'_>, batch: &Batch) -> bool {
    let mut dims = [
        (c.row_stride, c.rows),
        (batch.c[0], batch.count[0]),
        (batch.c[1], batch.count[1]),
    ];
    dims.sort_unstable();
    let mut span = c.cols;
    dims.into_iter()
        .filter(|&(_, count)| count > 1)
        .all(|(stride, count)| {
            let separate = stride >= span;
            span += stride * (count - 1);
            separate
        })
}

/// Checks the inputs and runs the batch; shared by both entry points.
fn launch<'a>(
    item: &'a (dyn Fn(usize) -> Item<'a> + Sync),
    batch: usize,
    options: &GemmOptions<'a>,
) {
    let first = item(0);
    let ((m, k), (b_rows, n)) = (first.a.shape(), first.b.shape());
    assert_eq!(k, b_rows, "inner dimensions differ");
    assert!(
        !matches!(first.a, Operand::Quant(_)),
        "the left operand must not be quantized"
    );
    assert!(
        options.bias.is_none_or(|bias| bias.len() == n),
        "bias length"
    );
    assert!(
        options.bias.is_none() || !options.accumulate,
        "bias and accumulate are mutually exclusive"
    );
    let bf16 = options.precision == Precision::Bf16;
    let isa = options.isa.clamp_to_machine();
    let kernel = if bf16 {
        tile::bf16_microkernel(isa)
    } else {
        tile::f32_microkernel(isa)
    };
    let problem = Problem {
        m,
        n,
        k,
        batch,
        item,
        alpha: options.alpha,
        accumulate: options.accumulate,
        bias: options.bias,
        bf16,
        kernel,
        isa,
    };
    problem.run(options.threads);
}
