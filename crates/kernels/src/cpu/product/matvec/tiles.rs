//! `y = x * w` with the columns of `w` side by side, where `w` is so small that it lies in a near cache:
//! sums stay in registers along all of k, which takes short pieces of each row of `w`.
//!
//! The sums are those of [`columns`](super::columns), from first to last, to the bit.

use super::Job;
use crate::cpu::product::simd::Simd;

super::entries!(tiles);

/// Columns `start..end` for `M` rows: as many registers of columns as there is room for.
#[inline(always)]
unsafe fn tiles<S: Simd, const M: usize>(job: &Job, start: usize, end: usize) {
    // AVX-512 has twice the registers of the others.
    let many = S::LANES == 16;
    // SAFETY: passed on from the caller.
    unsafe {
        match M {
            1 | 2 if many => wide::<S, M, 8>(job, start, end),
            1 | 3 | 4 if many || M == 1 => wide::<S, M, 4>(job, start, end),
            _ if many || M <= 4 => wide::<S, M, 2>(job, start, end),
            _ => wide::<S, M, 1>(job, start, end),
        }
    }
}

/// `tiles` with `C` registers of columns at a time.
#[inline(always)]
unsafe fn wide<S: Simd, const M: usize, const C: usize>(job: &Job, start: usize, end: usize) {
    let mut j = start;
    // SAFETY: passed on from the caller; all columns lie below `end`.
    unsafe {
        while j + C * S::LANES <= end {
            tile::<S, M, C>(job, j, |p| S::load(p), |p, v| S::store(p, v));
            j += C * S::LANES;
        }
        while j + S::LANES <= end {
            tile::<S, M, 1>(job, j, |p| S::load(p), |p, v| S::store(p, v));
            j += S::LANES;
        }
        if j < end {
            let n = end - j;
            let store = |p, v| S::store_part(p, v, n);
            tile::<S, M, 1>(job, j, |p| S::load_part(p, n), store);
        }
    }
}

/// `C` registers of columns from `j` on, for `M` rows.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const C: usize>(
    job: &Job,
    j: usize,
    load: impl Fn(*const f32) -> S::V,
    store: impl Fn(*mut f32, S::V),
) {
    // SAFETY: the caller vouches for the job, and that `load` and `store` stay within the columns.
    unsafe {
        let mut sums = [[S::zero(); C]; M];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (c, sum) in sums.iter_mut().enumerate() {
                if let Some(from) = job.out.init(r, j + c * S::LANES) {
                    *sum = load(from);
                }
            }
        }
        for k in 0..job.k {
            let w = job.w.add(k * job.w_stride + j);
            let mut values = [S::zero(); C];
            for (c, value) in values.iter_mut().enumerate() {
                *value = load(w.add(c * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(job.x.add(r * job.x_stride + k));
                for (sum, &value) in sums.iter_mut().zip(&values) {
                    *sum = S::fma(x, value, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                store(job.out.at(r, j + c * S::LANES), sum);
            }
        }
    }
}
