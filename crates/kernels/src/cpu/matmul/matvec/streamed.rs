//! `y = x * w` for a row-major `w`: eight rows of `w` at a time are streamed into partial sums, which
//! stay in the cache.

use pulp::Simd;

use super::Job;
use crate::cpu::simd::{Ops, load_part};

/// Number of rows of `w` per pass over the partial sums.
const K_UNROLL: usize = 8;
/// Number of partial sums: half of the L1 cache. Fewer rows leave room for more columns, and long
/// streams suit the hardware prefetcher.
const PARTIAL_SUMS: usize = 4096;

/// Number of columns at a time for `m` rows.
const fn tile_cols(m: usize) -> usize {
    (PARTIAL_SUMS / m - 16) / 64 * 64
}

/// Stride between rows of partial sums. Not a multiple of the page size, as the strides of `w` and `y`
/// often are, to avoid cache set conflicts.
const fn sum_stride(m: usize) -> usize {
    tile_cols(m) + 16
}

const _: () =
    assert!(sum_stride(super::ROWS) * super::ROWS <= PARTIAL_SUMS && sum_stride(1) <= PARTIAL_SUMS);

super::entries!(compute);

/// Computes columns `start..end` for `M` rows, summing along k from first to last.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn compute<S: Simd, const M: usize>(s: S, job: &Job, start: usize, end: usize) {
    let mut partial = [0.0_f32; PARTIAL_SUMS];
    let sums = partial.as_mut_ptr();
    for j in (start..end).step_by(tile_cols(M)) {
        let n = tile_cols(M).min(end - j);
        // SAFETY: the caller guarantees a valid job; all accesses stay below `end` and `job.k`, or
        // within `partial`.
        unsafe {
            for r in 0..M {
                let row = sums.add(r * sum_stride(M));
                match job.out.init(j) {
                    Some(init) => row.copy_from_nonoverlapping(init, n),
                    None => row.write_bytes(0, n),
                }
            }
            let unrolled = job.k / K_UNROLL * K_UNROLL;
            for k in (0..unrolled).step_by(K_UNROLL) {
                accumulate_rows::<S, M, K_UNROLL>(s, job, k, j, n, sums);
            }
            for k in unrolled..job.k {
                accumulate_rows::<S, M, 1>(s, job, k, j, n, sums);
            }
            for r in 0..M {
                job.out
                    .element(r, j)
                    .copy_from_nonoverlapping(sums.add(r * sum_stride(M)), n);
            }
        }
    }
}

/// Accumulates rows `k..k + D` of `w` into the partial sums of columns `j..j + n`.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn accumulate_rows<S: Simd, const M: usize, const D: usize>(
    s: S,
    job: &Job,
    k: usize,
    j: usize,
    n: usize,
    sums: *mut f32,
) {
    // SAFETY: see `compute`; the last register of partial sums may be only partially used.
    unsafe {
        let (x, w) = (job.x.add(k), job.w.add(k * job.w_stride + j));
        let mut c = 0;
        while c + S::LANES <= n {
            accumulate_register::<S, M, D>(s, job, x, w.add(c), sums.add(c), |p| s.load(p));
            c += S::LANES;
        }
        if c < n {
            accumulate_register::<S, M, D>(s, job, x, w.add(c), sums.add(c), |p| {
                load_part(s, p, 0, Some(n - c))
            });
        }
    }
}

/// `accumulate_rows` for one register of columns.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn accumulate_register<S: Simd, const M: usize, const D: usize>(
    s: S,
    job: &Job,
    x: *const f32,
    w: *const f32,
    sums: *mut f32,
    load: impl Fn(*const f32) -> S::f32s,
) {
    // SAFETY: see `compute`.
    unsafe {
        let mut values = [s.zero(); D];
        for (d, value) in values.iter_mut().enumerate() {
            *value = load(w.add(d * job.w_stride));
        }
        for r in 0..M {
            let mut acc = s.load(sums.add(r * sum_stride(M)));
            for (d, &value) in values.iter().enumerate() {
                acc = s.fma(s.splat_f32s(*x.add(r * job.x_stride + d)), value, acc);
            }
            s.store(sums.add(r * sum_stride(M)), acc);
        }
    }
}
