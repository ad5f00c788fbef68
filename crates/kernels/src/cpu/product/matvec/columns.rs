//! `y = x * w` with the columns of `w` side by side: eight rows of `w` are streamed at a time
//! into the partial results, which stay in the cache.

use super::Job;
use crate::cpu::product::simd::Simd;

/// Rows of `w` per pass over the partial results.
const DEPTH: usize = 8;
/// Partial results at a time: half of the nearest cache. The fewer rows, the more columns: long
/// streams are what the hardware fetches ahead best.
const SUMS: usize = 4096;

/// Columns at a time for `m` rows.
const fn tile(m: usize) -> usize {
    (SUMS / m - 16) / 64 * 64
}

/// Distance of the rows of partial results: not a multiple of the page size, as the rows of `w`
/// and `y` often are, so that the lines in use do not compete for the same place in the cache.
const fn stride(m: usize) -> usize {
    tile(m) + 16
}

const _: () = assert!(stride(super::ROWS) * super::ROWS <= SUMS && stride(1) <= SUMS);

super::entries!(columns);

/// Columns `start..end` for `M` rows. Sums along k from first to last.
#[inline(always)]
unsafe fn columns<S: Simd, const M: usize>(job: &Job, start: usize, end: usize) {
    let mut partial = [0.0_f32; SUMS];
    let sums = partial.as_mut_ptr();
    for j in (start..end).step_by(tile(M)) {
        let n = tile(M).min(end - j);
        // SAFETY: the caller vouches for the job; all accesses stay below `end` and `job.k`, or
        // within `partial`.
        unsafe {
            for r in 0..M {
                let row = sums.add(r * stride(M));
                match job.out.init(r, j) {
                    Some(from) => row.copy_from_nonoverlapping(from, n),
                    None => row.write_bytes(0, n),
                }
            }
            let whole = job.k / DEPTH * DEPTH;
            for k in (0..whole).step_by(DEPTH) {
                pass::<S, M, DEPTH>(job, k, j, n, sums);
            }
            for k in whole..job.k {
                pass::<S, M, 1>(job, k, j, n, sums);
            }
            for r in 0..M {
                job.out
                    .at(r, j)
                    .copy_from_nonoverlapping(sums.add(r * stride(M)), n);
            }
        }
    }
}

/// Adds the rows `k..k + D` of `w` to the partial results of the columns `j..j + n`.
#[inline(always)]
unsafe fn pass<S: Simd, const M: usize, const D: usize>(
    job: &Job,
    k: usize,
    j: usize,
    n: usize,
    sums: *mut f32,
) {
    // SAFETY: see `columns`; the last register of the partial results may be used in part.
    unsafe {
        let (x, w) = (job.x.add(k), job.w.add(k * job.w_stride + j));
        let mut c = 0;
        while c + S::LANES <= n {
            step::<S, M, D>(job, x, w.add(c), sums.add(c), |p| S::load(p));
            c += S::LANES;
        }
        if c < n {
            step::<S, M, D>(job, x, w.add(c), sums.add(c), |p| S::load_part(p, n - c));
        }
    }
}

/// `pass` for one register of columns.
#[inline(always)]
unsafe fn step<S: Simd, const M: usize, const D: usize>(
    job: &Job,
    x: *const f32,
    w: *const f32,
    sums: *mut f32,
    load: impl Fn(*const f32) -> S::V,
) {
    // SAFETY: see `columns`.
    unsafe {
        let mut values = [S::zero(); D];
        for (d, value) in values.iter_mut().enumerate() {
            *value = load(w.add(d * job.w_stride));
        }
        for r in 0..M {
            let mut acc = S::load(sums.add(r * stride(M)));
            for (d, &value) in values.iter().enumerate() {
                acc = S::fma(S::splat(x.add(r * job.x_stride + d)), value, acc);
            }
            S::store(sums.add(r * stride(M)), acc);
        }
    }
}
