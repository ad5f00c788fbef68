//! `y = x * w` with each column of `w` contiguous (a matrix stored as n by k): dot products.

use super::Job;
use crate::cpu::product::simd::Simd;

super::entries!(dots);

/// Columns `start..end` for `M` rows; the fewer rows, the more columns at a time.
#[inline(always)]
unsafe fn dots<S: Simd, const M: usize>(job: &Job, start: usize, end: usize) {
    // AVX-512 has twice the registers of the others.
    let many = S::LANES == 16;
    // SAFETY: passed on from the caller.
    unsafe {
        match M {
            1 if many => streams::<S, M, 8>(job, start, end),
            1 | 2 => streams::<S, M, 4>(job, start, end),
            _ if many => streams::<S, M, 4>(job, start, end),
            _ => streams::<S, M, 2>(job, start, end),
        }
    }
}

/// `dots` with `C` columns at a time, far apart: `C` long streams, which the hardware fetches
/// ahead better than one, and much better than neighbouring columns.
#[inline(always)]
unsafe fn streams<S: Simd, const M: usize, const C: usize>(job: &Job, start: usize, end: usize) {
    let mut length = (end - start) / C;
    // Streams a multiple of the page size apart would compete for the same lines of the
    // nearest cache.
    if length > 1 && (length * job.w_stride).is_multiple_of(1024) {
        length -= 1;
    }
    // SAFETY: passed on from the caller; `C * length` columns lie below `end`.
    unsafe {
        for j in start..start + length {
            all_rows::<S, M, C>(job, j, length);
        }
        for j in start + C * length..end {
            all_rows::<S, M, 1>(job, j, 0);
        }
    }
}

/// A group of columns for all rows: in two passes where the sums of more than four rows would
/// not fit the registers. The second pass finds the weights in the nearest cache.
#[inline(always)]
unsafe fn all_rows<S: Simd, const M: usize, const C: usize>(job: &Job, j: usize, step: usize) {
    // SAFETY: passed on from the caller.
    unsafe {
        if M <= 4 {
            return group::<S, M, C>(job, 0, j, step);
        }
        group::<S, 4, C>(job, 0, j, step);
        match M {
            5 => group::<S, 1, C>(job, 4, j, step),
            6 => group::<S, 2, C>(job, 4, j, step),
            7 => group::<S, 3, C>(job, 4, j, step),
            _ => group::<S, 4, C>(job, 4, j, step),
        }
    }
}

/// `C` columns from `j`, `step` apart, for `M` rows from `first`. Each sum is one register along all of k: a column is
/// summed in the same way in a group of any size.
#[inline(always)]
unsafe fn group<S: Simd, const M: usize, const C: usize>(
    job: &Job,
    first: usize,
    j: usize,
    step: usize,
) {
    // SAFETY: the caller vouches for the job; all accesses stay below `job.k`.
    unsafe {
        let x = job.x.add(first * job.x_stride);
        let mut w = [job.w; C];
        for (c, w) in w.iter_mut().enumerate() {
            *w = job.w.add((j + c * step) * job.w_stride);
        }
        let mut acc = [[S::zero(); C]; M];
        let mut k = 0;
        while k + S::LANES <= job.k {
            accumulate::<S, M, C>(x.add(k), job.x_stride, &w, k, &mut acc, |p| S::load(p));
            k += S::LANES;
        }
        if k < job.k {
            let n = job.k - k;
            accumulate::<S, M, C>(x.add(k), job.x_stride, &w, k, &mut acc, |p| {
                S::load_part(p, n)
            });
        }
        for (r, acc) in acc.iter().enumerate() {
            for (c, &acc) in acc.iter().enumerate() {
                let column = j + c * step;
                let init = job.out.init(first + r, column).map_or(0.0, |init| *init);
                *job.out.at(first + r, column) = S::sum(acc) + init;
            }
        }
    }
}

/// Multiplies one register of values along k into the sums.
#[inline(always)]
unsafe fn accumulate<S: Simd, const M: usize, const C: usize>(
    x: *const f32,
    x_stride: usize,
    w: &[*const f32; C],
    k: usize,
    acc: &mut [[S::V; C]; M],
    load: impl Fn(*const f32) -> S::V,
) {
    // SAFETY: see `group`.
    unsafe {
        let mut values = [S::zero(); C];
        for (value, w) in values.iter_mut().zip(w) {
            *value = load(w.add(k));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = load(x.add(r * x_stride));
            for (&w, acc) in values.iter().zip(acc) {
                *acc = S::fma(x, w, *acc);
            }
        }
    }
}
