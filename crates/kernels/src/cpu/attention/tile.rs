//! The register-blocked matrix product used for all inner products of attention:
//! `c[r][..] = sum over t of a(r, t) * b[t][..]`, broadcasting elements of a and loading rows of b.

use pulp::Simd;

use super::super::simd::Ops;
use super::super::view::Rows;

/// Width of a tile in registers.
const REGS: usize = 2;

/// `rows` x `steps` elements at `ptr + r * row_stride + t * step_stride`.
#[derive(Clone, Copy)]
pub(super) struct Factor {
    pub(super) ptr: *const f32,
    pub(super) row_stride: usize,
    pub(super) step_stride: usize,
}

/// Rows that a tile computes at once, limited by the number of registers.
#[inline(always)]
const fn rows_per_tile<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
}

/// Number of rows of the next tile when `remaining` rows are left.
#[inline(always)]
const fn tile_rows<S: Simd>(remaining: usize) -> usize {
    match remaining {
        8.. if rows_per_tile::<S>() == 8 => 8,
        4.. => 4,
        _ => 1,
    }
}

/// `c[r][cols] = sum over t < steps`, where `cols` are the registers that `columns` returns for
/// each group of rows.
///
/// # Safety
/// All elements of a, b and c that rows, steps and columns reach must be valid.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    rows: usize,
    steps: usize,
    a: Factor,
    b: Rows<*const f32>,
    c: Rows<*mut f32>,
    columns: &impl ColumnRanges,
) {
    let mut r = 0;
    while r < rows {
        let group = tile_rows::<S>(rows - r);
        let (mut v, end) = columns.range(r, r + group, S::LANES);
        while v < end {
            let regs = if v + REGS <= end { REGS } else { 1 };
            // SAFETY: the caller guarantees that all elements reached are valid; `v` and `r` stay
            // in range.
            unsafe {
                let a = Factor {
                    ptr: a.ptr.add(r * a.row_stride),
                    ..a
                };
                let b = Rows {
                    ptr: b.ptr.add(v * S::LANES),
                    ..b
                };
                let c = Rows {
                    ptr: c.ptr.add(r * c.stride + v * S::LANES),
                    ..c
                };
                match (group, regs) {
                    (8, 2) => store_tile::<S, 8, 2>(s, steps, a, b, c),
                    (8, _) => store_tile::<S, 8, 1>(s, steps, a, b, c),
                    (4, 2) => store_tile::<S, 4, 2>(s, steps, a, b, c),
                    (4, _) => store_tile::<S, 4, 1>(s, steps, a, b, c),
                    (_, 2) => store_tile::<S, 1, 2>(s, steps, a, b, c),
                    (_, _) => store_tile::<S, 1, 1>(s, steps, a, b, c),
                }
            }
            v += regs;
        }
        r += group;
    }
}

/// Which registers of a row are needed for a group of rows.
pub(super) trait ColumnRanges {
    /// First register and one past the last, for rows `first..end`.
    fn range(&self, first: usize, end: usize, lanes: usize) -> (usize, usize);
}

/// Which steps are needed for a group of rows.
pub(super) trait StepRanges {
    /// First step and one past the last, for rows `first..end`.
    fn range(&self, first: usize, end: usize) -> (usize, usize);
}

/// `c[r][..width] += sum over t` in the range of steps that `steps` returns for each group of rows.
///
/// # Safety
/// All elements of a, b and c that rows, steps and columns reach must be valid.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Simd>(
    s: S,
    rows: usize,
    width: usize,
    a: Factor,
    b: Rows<*const f32>,
    c: Rows<*mut f32>,
    steps: &impl StepRanges,
) {
    let mut r = 0;
    while r < rows {
        let group = tile_rows::<S>(rows - r);
        let (first, end) = steps.range(r, r + group);
        if first < end {
            // SAFETY: the caller guarantees that all elements reached are valid; `r` and `first`
            // stay in range.
            unsafe {
                let a = Factor {
                    ptr: a.ptr.add(r * a.row_stride + first * a.step_stride),
                    ..a
                };
                let b = Rows {
                    ptr: b.ptr.add(first * b.stride),
                    ..b
                };
                let c = Rows {
                    ptr: c.ptr.add(r * c.stride),
                    ..c
                };
                match group {
                    8 => accumulate_rows::<S, 8>(s, width, end - first, a, b, c),
                    4 => accumulate_rows::<S, 4>(s, width, end - first, a, b, c),
                    _ => accumulate_rows::<S, 1>(s, width, end - first, a, b, c),
                }
            }
        }
        r += group;
    }
}

/// `accumulate` for one group of `R` rows.
///
/// # Safety
/// `R` rows and `steps` steps of a, `steps` rows of b and `R` rows of c must be valid, `width`
/// floats each for b and c.
#[inline(always)]
unsafe fn accumulate_rows<S: Simd, const R: usize>(
    s: S,
    width: usize,
    steps: usize,
    a: Factor,
    b: Rows<*const f32>,
    c: Rows<*mut f32>,
) {
    let mut offset = 0;
    while offset < width {
        let left = width - offset;
        // SAFETY: the caller guarantees that the rows are valid; `offset` stays below `width`, and a
        // partial register is loaded and stored partially.
        unsafe {
            let b = Rows {
                ptr: b.ptr.add(offset),
                ..b
            };
            let c = Rows {
                ptr: c.ptr.add(offset),
                ..c
            };
            if left >= REGS * S::LANES {
                accumulate_tile::<S, R, REGS>(s, steps, a, b, c);
                offset += REGS * S::LANES;
            } else if left >= S::LANES {
                accumulate_tile::<S, R, 1>(s, steps, a, b, c);
                offset += S::LANES;
            } else {
                accumulate_partial_tile::<S, R>(s, left, steps, a, b, c);
                offset = width;
            }
        }
    }
}

/// Computes the sums of one tile.
///
/// # Safety
/// `R` rows and `steps` steps of a, and `steps` rows of `V` registers of b must be valid.
#[inline(always)]
unsafe fn tile_sums<S: Simd, const R: usize, const V: usize>(
    s: S,
    steps: usize,
    a: Factor,
    b: Rows<*const f32>,
) -> [[S::f32s; V]; R] {
    let mut acc = [[s.zero(); V]; R];
    let (mut a_ptr, mut b_ptr) = (a.ptr, b.ptr);
    for _ in 0..steps {
        // SAFETY: the caller guarantees that all elements are valid. After the last step the
        // pointers are past the end but never dereferenced, hence the wrapping additions.
        unsafe {
            let mut row = [s.zero(); V];
            for (v, x) in row.iter_mut().enumerate() {
                *x = s.load(b_ptr.add(v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let factor = s.splat_f32s(*a_ptr.add(r * a.row_stride));
                for (acc, x) in acc.iter_mut().zip(row) {
                    *acc = s.fma(factor, x, *acc);
                }
            }
        }
        a_ptr = a_ptr.wrapping_add(a.step_stride);
        b_ptr = b_ptr.wrapping_add(b.stride);
    }
    acc
}

/// Stores the sums of one tile to c.
///
/// # Safety
/// As for `tile_sums`; `R` rows of `V` registers must be writable at c.
#[inline(always)]
unsafe fn store_tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    steps: usize,
    a: Factor,
    b: Rows<*const f32>,
    c: Rows<*mut f32>,
) {
    // SAFETY: the caller guarantees that a and b are valid, and c has `R` rows of `V` registers.
    unsafe {
        let acc = tile_sums::<S, R, V>(s, steps, a, b);
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, x) in acc.into_iter().enumerate() {
                s.store(c.ptr.add(r * c.stride + v * S::LANES), x);
            }
        }
    }
}

/// Adds the sums of one tile to c.
///
/// # Safety
/// As for `tile_sums`; `R` rows of `V` registers must be readable and writable at c.
#[inline(always)]
unsafe fn accumulate_tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    steps: usize,
    a: Factor,
    b: Rows<*const f32>,
    c: Rows<*mut f32>,
) {
    // SAFETY: the caller guarantees that a and b are valid, and c has `R` rows of `V` registers.
    unsafe {
        let acc = tile_sums::<S, R, V>(s, steps, a, b);
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, x) in acc.into_iter().enumerate() {
                let ptr = c.ptr.add(r * c.stride + v * S::LANES);
                s.store(ptr, s.add_f32s(s.load(ptr), x));
            }
        }
    }
}

/// Like `accumulate_tile` for the last `left` elements of a row, fewer than a register.
///
/// # Safety
/// `R` rows and `steps` steps of a, `steps` rows of b and `R` rows of c must be valid, `left`
/// floats each for b and c.
#[inline(always)]
unsafe fn accumulate_partial_tile<S: Simd, const R: usize>(
    s: S,
    left: usize,
    steps: usize,
    a: Factor,
    b: Rows<*const f32>,
    c: Rows<*mut f32>,
) {
    let mut acc = [s.zero(); R];
    for t in 0..steps {
        // SAFETY: the caller guarantees that `left` floats of each row of b, and all elements of a,
        // are valid.
        unsafe {
            let x = s.partial_load_f32s(std::slice::from_raw_parts(b.ptr.add(t * b.stride), left));
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = s.fma(
                    s.splat_f32s(*a.ptr.add(r * a.row_stride + t * a.step_stride)),
                    x,
                    *acc,
                );
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        // SAFETY: the caller guarantees that `left` floats of each row of c are valid.
        unsafe {
            let row = std::slice::from_raw_parts_mut(c.ptr.add(r * c.stride), left);
            let sum = s.add_f32s(s.partial_load_f32s(row), acc);
            s.partial_store_f32s(row, sum);
        }
    }
}
