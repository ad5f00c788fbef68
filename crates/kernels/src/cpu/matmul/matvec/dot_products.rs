//! `y = x * w` for a column-major `w` (a matrix stored as n by k), computed as dot products.

use pulp::Simd;

use super::Job;
use crate::cpu::simd::{Ops, load_part};

super::entries!(compute);

/// Computes columns `start..end` for `M` rows. Fewer rows allow more columns at a time.
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
            1 if has_32_registers => streams::<S, M, 8>(s, job, start, end),
            1 | 2 => streams::<S, M, 4>(s, job, start, end),
            _ if has_32_registers => streams::<S, M, 4>(s, job, start, end),
            _ => streams::<S, M, 2>(s, job, start, end),
        }
    }
}

/// Computes `C` distant columns at a time. The hardware prefetcher handles `C` long streams better
/// than one, and much better than adjacent columns.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn streams<S: Simd, const M: usize, const C: usize>(
    s: S,
    job: &Job,
    start: usize,
    end: usize,
) {
    let mut length = (end - start) / C;
    // Streams that are a multiple of the page size apart would map to the same L1 cache sets.
    if length > 1 && (length * job.w_stride).is_multiple_of(1024) {
        length -= 1;
    }
    // SAFETY: the caller upholds the contract of `Kernel`; `C * length` columns lie below `end`.
    unsafe {
        for j in start..start + length {
            all_rows::<S, M, C>(s, job, j, length);
        }
        for j in start + C * length..end {
            all_rows::<S, M, 1>(s, job, j, 0);
        }
    }
}

/// Computes a group of columns for all rows, in two passes if the sums of more than four rows would
/// not fit in registers. The second pass reads the weights from the L1 cache.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn all_rows<S: Simd, const M: usize, const C: usize>(
    s: S,
    job: &Job,
    j: usize,
    step: usize,
) {
    // SAFETY: the caller upholds the contract of `Kernel`.
    unsafe {
        if M <= 4 {
            return dot_group::<S, M, C>(s, job, 0, j, step);
        }
        dot_group::<S, 4, C>(s, job, 0, j, step);
        match M {
            5 => dot_group::<S, 1, C>(s, job, 4, j, step),
            6 => dot_group::<S, 2, C>(s, job, 4, j, step),
            7 => dot_group::<S, 3, C>(s, job, 4, j, step),
            _ => dot_group::<S, 4, C>(s, job, 4, j, step),
        }
    }
}

/// Computes `C` columns from `j`, `step` apart, for `M` rows from `first`. Each sum uses one register
/// along all of k, so a column is summed in the same order in a group of any size.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn dot_group<S: Simd, const M: usize, const C: usize>(
    s: S,
    job: &Job,
    first: usize,
    j: usize,
    step: usize,
) {
    // SAFETY: the caller guarantees a valid job; all accesses stay below `job.k`.
    unsafe {
        let x = job.x.add(first * job.x_stride);
        let mut w = [job.w; C];
        for (c, w) in w.iter_mut().enumerate() {
            *w = job.w.add((j + c * step) * job.w_stride);
        }
        let mut acc = [[s.zero(); C]; M];
        let mut k = 0;
        while k + S::LANES <= job.k {
            accumulate::<S, M, C>(s, x.add(k), job.x_stride, &w, k, &mut acc, |p| s.load(p));
            k += S::LANES;
        }
        if k < job.k {
            let n = job.k - k;
            accumulate::<S, M, C>(s, x.add(k), job.x_stride, &w, k, &mut acc, |p| {
                load_part(s, p, 0, Some(n))
            });
        }
        for (r, acc) in acc.iter().enumerate() {
            for (c, &acc) in acc.iter().enumerate() {
                let column = j + c * step;
                let init = job.out.init(column).map_or(0.0, |init| *init);
                *job.out.element(first + r, column) = s.reduce_sum_f32s(acc) + init;
            }
        }
    }
}

/// Accumulates the products of one register of elements along k.
///
/// # Safety
/// As for [`Kernel`](super::Kernel).
#[inline(always)]
unsafe fn accumulate<S: Simd, const M: usize, const C: usize>(
    s: S,
    x: *const f32,
    x_stride: usize,
    w: &[*const f32; C],
    k: usize,
    acc: &mut [[S::f32s; C]; M],
    load: impl Fn(*const f32) -> S::f32s,
) {
    // SAFETY: see `dot_group`.
    unsafe {
        let mut values = [s.zero(); C];
        for (value, w) in values.iter_mut().zip(w) {
            *value = load(w.add(k));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = load(x.add(r * x_stride));
            for (&w, acc) in values.iter().zip(acc) {
                *acc = s.fma(x, w, *acc);
            }
        }
    }
}
