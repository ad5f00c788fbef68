//! Products of a few rows with a large matrix, as decoding needs them.
//!
//! Such a product is bound by the memory bandwidth: the matrix is read from memory once, in blocks that
//! the caches hold while eight rows after eight pass over them. Every row is computed by the same sequence of operations, whatever the number of rows
//! in the call and of threads; a request gets the same text alone and in a batch.

mod columns;
mod rows;
#[cfg(test)]
mod tests;
mod tiles;

use crate::cpu::product::gemm::{GemmOptions, gemm};
use crate::cpu::product::isa::Isa;
use crate::cpu::product::matrix::{MatMut, MatRef};
use crate::cpu::product::par::{SharedMut, Threads, run};

/// Rows that share one pass over the matrix.
pub(crate) const ROWS: usize = 8;
/// Below this many bytes of weights, for up to four rows, a second thread costs more than it saves.
const SERIAL_BYTES: usize = 1 << 17;
/// Bytes of weights that stay in the cache for the next rows.
const BLOCK_BYTES: usize = 1 << 19;

/// Options of a product.
#[derive(Clone, Copy, Debug)]
pub struct MatvecOptions<'a> {
    /// Add to the result instead of overwriting it.
    pub accumulate: bool,
    /// A row added to each row of the result; not together with `accumulate`.
    pub bias: Option<&'a [f32]>,
    /// Threads; no influence on the result.
    pub threads: Threads,
    /// Highest instruction set to use; other than the machine's only for tests.
    pub isa: Isa,
}

impl Default for MatvecOptions<'_> {
    fn default() -> Self {
        Self {
            accumulate: false,
            bias: None,
            threads: Threads::Pool,
            isa: Isa::detect(),
        }
    }
}

/// `y = x * w`, plus y or the bias; made for few rows of `x`, correct for any number.
///
/// The rows of `x` must be contiguous. `w` (k by n) may be stored row by row or column by
/// column: pass `MatRef::row_major(embedding, n, k).t()` for a matrix stored as n by k. Other
/// strides take the path of [`gemm`].
///
/// Panics where the shapes do not fit.
pub fn matvec(x: MatRef<'_>, w: MatRef<'_>, y: &mut MatMut<'_>, options: &MatvecOptions<'_>) {
    check_shapes((x.rows, x.cols), (w.rows, w.cols), y, options);
    assert!(
        x.col_stride == 1 || x.cols <= 1,
        "the rows of x must be contiguous"
    );
    let near = w.rows * w.cols * size_of::<f32>() <= BLOCK_BYTES;
    let kernel: Kernel = if w.col_stride == 1 && near {
        tiles::kernel(options.isa)
    } else if w.col_stride == 1 {
        columns::kernel(options.isa)
    } else if w.row_stride == 1 {
        rows::kernel(options.isa)
    } else {
        let MatvecOptions {
            accumulate,
            bias,
            threads,
            isa,
        } = *options;
        let options = GemmOptions {
            accumulate,
            bias,
            threads,
            isa,
            ..GemmOptions::default()
        };
        return gemm(x, w, y, &options);
    };
    let out = Out::new(y, options);
    let job = |first: usize| Job {
        x: x.data.as_ptr().wrapping_add(first * x.row_stride),
        x_stride: x.row_stride,
        rows: ROWS.min(x.rows - first),
        k: x.cols,
        w: w.data.as_ptr(),
        w_stride: if w.col_stride == 1 {
            w.row_stride
        } else {
            w.col_stride
        },
        out: out.below(first),
    };
    let column_bytes = x.cols * size_of::<f32>();
    let block = match x.rows {
        0..=ROWS => usize::MAX,
        _ => (BLOCK_BYTES / column_bytes.max(1))
            .max(1)
            .next_multiple_of(64),
    };
    // A task is a multiple of the cache line, and no smaller than a page of each row.
    let work = column_bytes * x.rows.div_ceil(4);
    split(y.cols, 64, work, options.threads, &|columns| {
        for start in columns.clone().step_by(block) {
            let end = columns.end.min(start.saturating_add(block));
            for first in (0..x.rows).step_by(ROWS) {
                // SAFETY: the shapes have been checked, the kernel fits the machine, and tasks
                // write disjoint columns.
                unsafe { kernel(&job(first), start, end) };
            }
        }
    });
}

/// The checks that all products of this kind share.
pub(crate) fn check_shapes(
    x: (usize, usize),
    w: (usize, usize),
    y: &MatMut<'_>,
    options: &MatvecOptions<'_>,
) {
    assert_eq!(x.1, w.0, "the factors differ in k");
    assert_eq!((y.rows, y.cols), (x.0, w.1), "result shape");
    assert!(
        options.bias.is_none_or(|bias| bias.len() == w.1),
        "bias length"
    );
    assert!(
        options.bias.is_none() || !options.accumulate,
        "bias and accumulate exclude each other"
    );
}

/// Divides `n` columns of `bytes` weight bytes each (for up to four rows; more is more work) between
/// threads, at multiples of `unit`.
pub(crate) fn split(
    n: usize,
    unit: usize,
    bytes: usize,
    threads: Threads,
    task: &(impl Fn(std::ops::Range<usize>) + Sync),
) {
    if n == 0 {
        return;
    }
    let workers = threads.workers(if n * bytes < SERIAL_BYTES {
        1
    } else {
        n.div_ceil(unit)
    });
    // Two tasks each: a worker that is late leaves the last one to the others.
    let parts = if workers == 1 { 1 } else { 2 * workers };
    let size = n.div_ceil(parts).next_multiple_of(unit);
    let tasks = n.div_ceil(size);
    run(workers, tasks, &|t| task(t * size..n.min((t + 1) * size)));
}

/// The result and what is added to it.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    y: SharedMut,
    stride: usize,
    accumulate: bool,
    bias: Option<SharedBias>,
}

/// A bias row; shared between threads for reading.
#[derive(Clone, Copy)]
struct SharedBias(*const f32);

// SAFETY: only read, while the caller's borrow lasts.
unsafe impl Send for SharedBias {}
// SAFETY: as above.
unsafe impl Sync for SharedBias {}

impl Out {
    pub(crate) fn new(y: &mut MatMut<'_>, options: &MatvecOptions<'_>) -> Self {
        Self {
            y: SharedMut::new(y.data.as_mut_ptr()),
            stride: y.row_stride,
            accumulate: options.accumulate,
            bias: options.bias.map(|bias| SharedBias(bias.as_ptr())),
        }
    }

    /// The result from row `first` on.
    pub(crate) fn below(self, first: usize) -> Self {
        let y = SharedMut::new(self.y.get().wrapping_add(first * self.stride));
        Self { y, ..self }
    }

    /// The place of an element.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> *mut f32 {
        self.y.get().wrapping_add(row * self.stride + column)
    }

    /// Where the values come from to which the product is added, if any.
    #[inline(always)]
    pub(crate) fn init(&self, row: usize, column: usize) -> Option<*const f32> {
        if self.accumulate {
            Some(self.at(row, column).cast_const())
        } else {
            self.bias.map(|bias| bias.0.wrapping_add(column))
        }
    }
}

/// A product of at most `ROWS` rows.
struct Job {
    x: *const f32,
    x_stride: usize,
    rows: usize,
    k: usize,
    w: *const f32,
    /// Distance of the rows of `w`, or of its columns where these are contiguous.
    w_stride: usize,
    out: Out,
}

// SAFETY: the pointers are only read, except for `out`, of which tasks use disjoint columns.
unsafe impl Sync for Job {}

/// Computes the columns from `start` to `end`.
type Kernel = unsafe fn(job: &Job, start: usize, end: usize);

/// A kernel entry that picks the instance for the number of rows, compiled for a feature set.
macro_rules! entry {
    ($name:ident, $instance:ident, $simd:ty, $attribute:tt) => {
        # $attribute
        unsafe fn $name(job: &super::Job, start: usize, end: usize) {
            // SAFETY: passed on from the caller.
            unsafe {
                match job.rows {
                    1 => $instance::<$simd, 1>(job, start, end),
                    2 => $instance::<$simd, 2>(job, start, end),
                    3 => $instance::<$simd, 3>(job, start, end),
                    4 => $instance::<$simd, 4>(job, start, end),
                    5 => $instance::<$simd, 5>(job, start, end),
                    6 => $instance::<$simd, 6>(job, start, end),
                    7 => $instance::<$simd, 7>(job, start, end),
                    _ => $instance::<$simd, 8>(job, start, end),
                }
            }
        }
    };
}

/// The entries for all instruction sets, and the choice between them.
macro_rules! entries {
    ($instance:ident) => {
        crate::cpu::product::matvec::entry!(
            portable,
            $instance,
            crate::cpu::product::simd::Portable,
            [inline]
        );
        #[cfg(target_arch = "x86_64")]
        crate::cpu::product::matvec::entry!(
            avx2,
            $instance,
            crate::cpu::product::simd::Avx2,
            [target_feature(enable = "avx2,fma")]
        );
        #[cfg(target_arch = "x86_64")]
        crate::cpu::product::matvec::entry!(
            avx512,
            $instance,
            crate::cpu::product::simd::Avx512,
            [target_feature(enable = "avx512f,avx512dq,avx512vl")]
        );

        /// The kernel for a level.
        pub(super) fn kernel(isa: crate::cpu::product::isa::Isa) -> super::Kernel {
            match isa.clamp_to_machine() {
                #[cfg(target_arch = "x86_64")]
                crate::cpu::product::isa::Isa::Avx2 => avx2,
                #[cfg(target_arch = "x86_64")]
                isa if isa >= crate::cpu::product::isa::Isa::Avx512 => avx512,
                _ => portable,
            }
        }
    };
}
use {entries, entry};
