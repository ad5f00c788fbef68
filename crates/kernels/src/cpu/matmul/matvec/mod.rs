//! Products of a few rows with a large matrix, used for decoding.
//!
//! Such products are bound by memory bandwidth. The matrix is read from memory once, in blocks that
//! stay in the cache while all rows pass over them, in groups. The sequence of operations for a row
//! is independent of the number of rows and threads, so a request produces the same text alone and
//! in a batch.

mod cached;
mod dot_products;
mod packed;
mod streamed;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::{MatMut, MatRef};
use crate::cpu::par::{self, Shared};
use crate::cpu::scratch::with_task_scratch;

/// Number of rows that share one pass over the matrix.
pub(crate) const ROWS: usize = 8;
/// From this number of rows on, copying the matrix to the cache costs less than it saves.
const MIN_PACKED_ROWS: usize = 2 * ROWS;
/// Below this number of weight bytes (for up to four rows), a second thread costs more than it saves.
const MIN_PARALLEL_BYTES: usize = 1 << 17;
/// Size in bytes of a block of weights that stays in the cache for the next rows.
const CACHE_BLOCK_BYTES: usize = 1 << 19;

/// Options of [`matvec`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatvecOptions<'a> {
    /// Bias added to each row of the result.
    pub(crate) bias: Option<&'a [f32]>,
    /// Highest instruction set to use. Tests set it below the machine's.
    pub(crate) isa: Isa,
}

impl Default for MatvecOptions<'_> {
    fn default() -> Self {
        Self {
            bias: None,
            isa: Isa::current(),
        }
    }
}

/// Computes `y = x * w`, plus the bias. Fast for few rows of `x`, correct for any number.
///
/// The rows of `x` must be contiguous. `w` (k by n) may be stored by rows or by columns: pass
/// `MatRef::row_major(embedding, n, k).t()` for a matrix stored as n by k.
///
/// # Panics
/// If the shapes do not match, or neither the rows nor the columns of `w` are contiguous.
pub(crate) fn matvec(
    x: MatRef<'_>,
    w: MatRef<'_>,
    y: &mut MatMut<'_>,
    options: &MatvecOptions<'_>,
) {
    check_shapes(&x, (w.rows, w.cols), y, options);
    let elements = w.rows.saturating_mul(w.cols);
    let fits_cache = elements <= CACHE_BLOCK_BYTES / size_of::<f32>();
    let is_packed = w.col_stride == 1 && x.rows >= MIN_PACKED_ROWS;
    let rows_per_pass = if is_packed { x.rows } else { ROWS };
    let kernel: Kernel = if is_packed {
        packed::kernel(options.isa)
    } else if w.col_stride == 1 && fits_cache {
        cached::kernel(options.isa)
    } else if w.col_stride == 1 {
        streamed::kernel(options.isa)
    } else {
        assert_eq!(w.row_stride, 1, "rows or columns of w must be contiguous");
        dot_products::kernel(options.isa)
    };
    let out = Out::new(y, options);
    let job = |first: usize, scratch: *mut f32| Job {
        x: x.data.as_ptr().wrapping_add(first * x.row_stride),
        x_stride: x.row_stride,
        rows: rows_per_pass.min(x.rows - first),
        k: x.cols,
        w: w.data.as_ptr(),
        w_stride: if w.col_stride == 1 {
            w.row_stride
        } else {
            w.col_stride
        },
        out: out.offset_rows(first),
        scratch,
    };
    let column_bytes = x.cols * size_of::<f32>();
    let block = match x.rows {
        // The packed kernel has its own blocks.
        rows if rows <= rows_per_pass => usize::MAX,
        _ => (CACHE_BLOCK_BYTES / column_bytes.max(1))
            .max(1)
            .next_multiple_of(64),
    };
    // Tasks are multiples of a cache line, and at least a page of each row.
    let bytes = column_bytes.saturating_mul(x.rows.div_ceil(4));
    let task = |columns: Range<usize>, scratch: *mut f32| {
        for start in columns.clone().step_by(block) {
            let end = columns.end.min(start.saturating_add(block));
            for first in (0..x.rows).step_by(rows_per_pass) {
                // SAFETY: the shapes have been checked, the machine supports the kernel, tasks write disjoint
                // columns, and the scratch of the packed kernel is as long as it needs.
                unsafe { kernel(&job(first, scratch), start, end) };
            }
        }
    };
    parallel_columns(y.cols, 64, bytes, &|columns| {
        let scratch_len = if is_packed {
            packed::scratch_len(x.cols)
        } else {
            0
        };
        with_task_scratch(scratch_len, |scratch| task(columns, scratch.as_mut_ptr()));
    });
}

/// Checks the shapes; shared with the quantized product.
pub(crate) fn check_shapes(
    x: &MatRef<'_>,
    w: (usize, usize),
    y: &MatMut<'_>,
    options: &MatvecOptions<'_>,
) {
    assert_eq!(x.cols, w.0, "inner dimensions differ");
    assert_eq!((y.rows, y.cols), (x.rows, w.1), "result shape");
    assert!(
        x.col_stride == 1 || x.cols <= 1,
        "the rows of x must be contiguous"
    );
    assert!(
        options.bias.is_none_or(|bias| bias.len() == w.1),
        "bias length"
    );
}

/// Runs `task` on ranges of `n` columns in parallel, split at multiples of `unit`. `bytes` is the
/// number of weight bytes per column, scaled up for more than four rows.
pub(crate) fn parallel_columns(
    n: usize,
    unit: usize,
    bytes: usize,
    task: &(impl Fn(Range<usize>) + Sync),
) {
    if n == 0 {
        return;
    }
    let workers = if n.saturating_mul(bytes) < MIN_PARALLEL_BYTES {
        1
    } else {
        par::threads().min(n.div_ceil(unit))
    };
    // Two tasks per worker, so that others can take over from a worker that is delayed.
    let parts = if workers == 1 { 1 } else { 2 * workers };
    let size = n.div_ceil(parts).next_multiple_of(unit);
    let tasks = n.div_ceil(size);
    par::run(workers, tasks, &|t| task(t * size..n.min((t + 1) * size)));
}

/// The result, and the bias that it starts from.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    y: Shared<f32>,
    stride: usize,
    bias: Option<Shared<f32>>,
    /// Number of the first row.
    first: usize,
}

impl Out {
    pub(crate) fn new(y: &mut MatMut<'_>, options: &MatvecOptions<'_>) -> Self {
        Self {
            y: Shared::new(y.data),
            stride: y.row_stride,
            bias: options.bias.map(Shared::read_only),
            first: 0,
        }
    }

    /// Returns the output starting at row `first`.
    pub(crate) fn offset_rows(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// Returns a pointer to an element.
    #[inline(always)]
    pub(crate) fn element(&self, row: usize, column: usize) -> *mut f32 {
        let offset = (self.first + row) * self.stride + column;
        self.y.as_ptr().wrapping_add(offset)
    }

    /// Returns a pointer to the initial value of an element of `column`, or `None` for zero.
    #[inline(always)]
    pub(crate) fn init(&self, column: usize) -> Option<*const f32> {
        let bias = self.bias?;
        Some(bias.as_ptr().wrapping_add(column).cast_const())
    }
}

/// A product with at most `ROWS` rows, or any number for the packed kernel.
struct Job {
    x: *const f32,
    x_stride: usize,
    rows: usize,
    k: usize,
    w: *const f32,
    /// Stride of the rows of `w`, or of its columns if they are contiguous.
    w_stride: usize,
    out: Out,
    /// For the packed kernel.
    scratch: *mut f32,
}

// SAFETY: only `out` is written to, and tasks write disjoint columns.
unsafe impl Sync for Job {}

/// Computes columns `start..end`.
///
/// # Safety
/// The machine must support the kernel's instruction set, the pointers of `job` must cover its shape,
/// and no other thread may access these columns of the output.
type Kernel = unsafe fn(job: &Job, start: usize, end: usize);

/// Defines a kernel entry point, compiled for a set of target features, that dispatches on the
/// number of rows, or is for any number.
macro_rules! entry {
    ($name:ident, $instance:ident any rows, $simd:ty, $attribute:tt) => {
        # $attribute
        unsafe fn $name(job: &super::Job, start: usize, end: usize) {
            // SAFETY: the caller upholds the contract of `Kernel`.
            unsafe { $instance(crate::cpu::simd::token::<$simd>(), job, start, end) }
        }
    };
    ($name:ident, $instance:ident, $simd:ty, $attribute:tt) => {
        # $attribute
        unsafe fn $name(job: &super::Job, start: usize, end: usize) {
            // SAFETY: the caller upholds the contract of `Kernel`.
            unsafe {
                let s = crate::cpu::simd::token::<$simd>();
                match job.rows {
                    1 => $instance::<$simd, 1>(s, job, start, end),
                    2 => $instance::<$simd, 2>(s, job, start, end),
                    3 => $instance::<$simd, 3>(s, job, start, end),
                    4 => $instance::<$simd, 4>(s, job, start, end),
                    5 => $instance::<$simd, 5>(s, job, start, end),
                    6 => $instance::<$simd, 6>(s, job, start, end),
                    7 => $instance::<$simd, 7>(s, job, start, end),
                    _ => $instance::<$simd, 8>(s, job, start, end),
                }
            }
        }
    };
}

/// Defines the entry points for all instruction sets, and the function that selects one.
macro_rules! entries {
    ($instance:ident $(, $any:ident $rows:ident)?) => {
        crate::cpu::matmul::matvec::entry!(scalar, $instance $($any $rows)?, pulp::Scalar256b, [inline]);
        #[cfg(target_arch = "x86_64")]
        crate::cpu::matmul::matvec::entry!(
            avx2,
            $instance $($any $rows)?,
            pulp::x86::V3,
            [target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        );
        #[cfg(target_arch = "x86_64")]
        crate::cpu::matmul::matvec::entry!(
            avx512,
            $instance $($any $rows)?,
            pulp::x86::V4,
            [target_feature(
                enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
            )]
        );

        /// Returns the kernel for a level.
        pub(super) fn kernel(isa: crate::cpu::isa::Isa) -> super::Kernel {
            use crate::cpu::isa::Isa;
            match isa.clamp_to_current() {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2,
                #[cfg(target_arch = "x86_64")]
                isa if isa >= Isa::Avx512 => avx512,
                _ => scalar,
            }
        }
    };
}
use {entries, entry};
