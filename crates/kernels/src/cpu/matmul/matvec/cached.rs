//! `y = x * w` for a row-major `w` that is small enough for the cache: sums stay in registers along
//! all of k, which reads short segments of each row of `w`.
//!
//! Sums are bitwise identical to those of [`streamed`](super::streamed): along k from first to last.

use pulp::Simd;

use super::Job;
use crate::cpu::simd::{Ops, load_part, store_part};

super::entries!(compute);

/// Computes columns `start..end` for `M` rows, with as many registers of columns as fit.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn compute<S: Simd, const M: usize>(s: S, job: &Job, start: usize, end: usize) {
    // AVX-512 has 32 vector registers, the others 16.
    let has_32_registers = S::REGISTER_COUNT >= 32;
    // SAFETY: the caller upholds the contract of `Kernel`.
    unsafe {
        match M {
            1 | 2 if has_32_registers => column_tiles::<S, M, 8>(s, job, start, end),
            1 | 3 | 4 if has_32_registers || M == 1 => column_tiles::<S, M, 4>(s, job, start, end),
            _ if has_32_registers || M <= 4 => column_tiles::<S, M, 2>(s, job, start, end),
            _ => column_tiles::<S, M, 1>(s, job, start, end),
        }
    }
}

/// Computes columns `start..end`, `C` registers of columns at a time.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn column_tiles<S: Simd, const M: usize, const C: usize>(
    s: S,
    job: &Job,
    start: usize,
    end: usize,
) {
    let mut j = start;
    // SAFETY: the caller upholds the contract of `Kernel`; all columns lie below `end`.
    unsafe {
        while j + C * S::LANES <= end {
            tile::<S, M, C>(s, job, j, |p| s.load(p), |p, v| s.store(p, v));
            j += C * S::LANES;
        }
        while j + S::LANES <= end {
            tile::<S, M, 1>(s, job, j, |p| s.load(p), |p, v| s.store(p, v));
            j += S::LANES;
        }
        if j < end {
            let n = end - j;
            let store = |p, v| store_part(s, p, 0, Some(n), v);
            tile::<S, M, 1>(s, job, j, |p| load_part(s, p, 0, Some(n)), store);
        }
    }
}

/// Computes `C` registers of columns from `j`, for `M` rows.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const C: usize>(
    s: S,
    job: &Job,
    j: usize,
    load: impl Fn(*const f32) -> S::f32s,
    store: impl Fn(*mut f32, S::f32s),
) {
    // SAFETY: the caller guarantees a valid job, and that `load` and `store` stay within the columns.
    unsafe {
        let mut sums = [[s.zero(); C]; M];
        for sums in &mut sums {
            for (c, sum) in sums.iter_mut().enumerate() {
                if let Some(init) = job.out.init(j + c * S::LANES) {
                    *sum = load(init);
                }
            }
        }
        for k in 0..job.k {
            let w = job.w.add(k * job.w_stride + j);
            let mut values = [s.zero(); C];
            for (c, value) in values.iter_mut().enumerate() {
                *value = load(w.add(c * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = s.splat_f32s(*job.x.add(r * job.x_stride + k));
                for (sum, &value) in sums.iter_mut().zip(&values) {
                    *sum = s.fma(x, value, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                store(job.out.element(r, j + c * S::LANES), sum);
            }
        }
    }
}
