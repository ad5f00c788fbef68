//! Matrix products: `C = alpha * A * B`, plus C or a bias row.
//!
//! Each element of the result is summed along k in one fixed order: in blocks whose length
//! depends on `k` alone, within a block from first to last. So the result is the same to the
//! last bit for any number of threads, and a row of it does not depend on the other rows.

mod driver;
mod operand;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
#[cfg(test)]
mod tests;
mod tile;

pub use operand::Operand;
pub(crate) use pack::Panels;
pub(crate) use tile::Format;

use crate::cpu::product::isa::Isa;
use crate::cpu::product::matrix::{MatMut, extent};
use crate::cpu::product::par::{SharedMut, Threads};
use driver::{Item, Problem};

/// The arithmetic of a product; accumulation is always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 factors.
    #[default]
    F32,
    /// Factors rounded to bf16, ties to even.
    Bf16,
}

/// Options of a product.
#[derive(Clone, Copy, Debug)]
pub struct GemmOptions<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// Add to the result instead of overwriting it.
    pub accumulate: bool,
    /// A row added to each row of the result; not together with `accumulate`.
    pub bias: Option<&'a [f32]>,
    /// Arithmetic.
    pub precision: Precision,
    /// Threads; no influence on the result.
    pub threads: Threads,
    /// Highest instruction set to use; other than the machine's only for tests.
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

/// `C = alpha * A * B`, plus C or the bias.
///
/// Panics where the shapes do not fit.
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

/// The places of the factors and results of a batch, on two levels such as sequence and head.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Items on the outer and the inner level.
    pub count: [usize; 2],
    /// Distance between the items of A on each level, in elements.
    pub a: [usize; 2],
    /// The same for B.
    pub b: [usize; 2],
    /// The same for C; the items must not overlap.
    pub c: [usize; 2],
}

/// `gemm` for a batch of products: `a`, `b` and `c` are the first item's shapes and strides
/// over slices that hold the whole batch.
///
/// Panics where the shapes do not fit, an item lies outside its slice or results overlap.
pub fn gemm_batched(
    a: crate::cpu::product::matrix::MatRef<'_>,
    b: crate::cpu::product::matrix::MatRef<'_>,
    c: &mut MatMut<'_>,
    batch: &Batch,
    options: &GemmOptions<'_>,
) {
    let [outer, inner] = batch.count;
    if outer * inner == 0 {
        return;
    }
    assert_eq!((c.rows, c.cols), (a.rows, b.cols), "result shape");
    assert!(
        disjoint(c, batch),
        "the results of a batch must not overlap"
    );
    let last = |s: [usize; 2]| (outer - 1) * s[0] + (inner - 1) * s[1];
    assert!(last(batch.c) + extent(c.rows, c.cols, c.row_stride, 1) <= c.data.len());
    let pointer = SharedMut::new(c.data.as_mut_ptr());
    let c_stride = c.row_stride;
    let item = |i: usize| {
        let at = |s: [usize; 2]| i / inner * s[0] + i % inner * s[1];
        Item {
            a: shifted(a, at(batch.a)).into(),
            b: shifted(b, at(batch.b)).into(),
            c: SharedMut::new(pointer.get().wrapping_add(at(batch.c))),
            c_stride,
        }
    };
    launch(&item, outer * inner, options);
}

/// The view moved on by `offset` elements.
fn shifted(
    m: crate::cpu::product::matrix::MatRef<'_>,
    offset: usize,
) -> crate::cpu::product::matrix::MatRef<'_> {
    crate::cpu::product::matrix::MatRef::new(
        &m.data[offset..],
        m.rows,
        m.cols,
        m.row_stride,
        m.col_stride,
    )
}

/// Whether no two items of a batch share an element of C: sorted by stride, each level steps
/// over all that the smaller ones span.
fn disjoint(c: &MatMut<'_>, batch: &Batch) -> bool {
    let mut levels = [
        (c.row_stride, c.rows),
        (batch.c[0], batch.count[0]),
        (batch.c[1], batch.count[1]),
    ];
    levels.sort_unstable();
    let mut span = c.cols;
    levels
        .into_iter()
        .filter(|&(_, count)| count > 1)
        .all(|(stride, count)| {
            let apart = stride >= span;
            span += stride * (count - 1);
            apart
        })
}

/// Checks what both entry points share, and runs.
fn launch<'a>(
    item: &'a (dyn Fn(usize) -> Item<'a> + Sync),
    batch: usize,
    options: &GemmOptions<'a>,
) {
    let first = item(0);
    let ((m, k), (k_b, n)) = (first.a.shape(), first.b.shape());
    assert_eq!(k, k_b, "the factors differ in k");
    assert!(
        !matches!(first.a, Operand::Quant(_)),
        "a quantized left factor"
    );
    assert!(
        options.bias.is_none_or(|bias| bias.len() == n),
        "bias length"
    );
    assert!(
        options.bias.is_none() || !options.accumulate,
        "bias and accumulate exclude each other"
    );
    let bf16 = options.precision == Precision::Bf16;
    let isa = options.isa.clamp_to_machine();
    let kernel = if bf16 {
        tile::bf16_kernel(isa)
    } else {
        tile::f32_kernel(isa)
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
