//! `y = x * w` for a row-major `w` and more rows than one pass of [`streamed`](super::streamed) takes: a panel of
//! columns is copied to scratch that stays in the cache, and tiles of several rows pass over it.
//!
//! A panel is read from memory once, as by the other kernels, but each of its registers serves all rows of a tile,
//! with one broadcast per row and step along k instead of one per product. Sums are bitwise identical to those of
//! [`streamed`](super::streamed): they start from the bias, in one register, along k from first to last.

use pulp::Simd;

use super::Job;
use crate::cpu::simd::{Ops, load_part, prefetch, store_part};

/// Registers of columns of a tile.
const COLUMNS: usize = 2;
/// Columns of the widest tile: two registers of AVX-512.
const MAX_TILE: usize = 32;
/// Rows of a tile with 16 vector registers: 12 sums, two registers of columns and one of `x`.
const ROWS_16: usize = 6;
/// Rows of a tile with 32 vector registers.
const ROWS_32: usize = 8;
/// Size in bytes of a panel, about a quarter of the L2 cache.
const PANEL_BYTES: usize = 1 << 18;
/// Rows of `w` between a copied one and the one that is prefetched.
const PREFETCH_ROWS: usize = 8;

super::entries!(compute, any rows);

/// Columns of a panel, for columns of `k` elements.
const fn panel_cols(k: usize) -> usize {
    let columns = PANEL_BYTES / size_of::<f32>() / MAX_TILE / if k == 0 { 1 } else { k };
    MAX_TILE * if columns == 0 { 1 } else { columns }
}

/// Elements of scratch that the kernel needs for columns of `k` elements.
pub(super) const fn scratch_len(k: usize) -> usize {
    panel_cols(k) * k
}

/// Computes columns `start..end` for all rows.
///
/// # Safety
/// As for [`Kernel`](super::Kernel), with any number of rows, and scratch of [`scratch_len`] elements.
#[inline(always)]
unsafe fn compute<S: Simd>(s: S, job: &Job, start: usize, end: usize) {
    let tile = COLUMNS * S::LANES;
    let width = panel_cols(job.k);
    for j in (start..end).step_by(width) {
        let n = width.min(end - j);
        // SAFETY: the caller guarantees a valid job, and the scratch holds `width` columns.
        unsafe {
            pack::<S>(s, job, j, n, job.scratch);
            for first in (0..n).step_by(tile) {
                let columns = job.scratch.add(first * job.k);
                tiles::<S>(s, job, columns, j + first, tile.min(n - first));
            }
        }
    }
}

/// Copies columns `j..j + n` of `w`, tile by tile; the columns of a tile beyond `n` are zero.
///
/// # Safety
/// As for [`Kernel`](super::Kernel); `panel` must have room for `n` columns, rounded up to whole tiles.
#[inline(always)]
unsafe fn pack<S: Simd>(s: S, job: &Job, j: usize, n: usize, panel: *mut f32) {
    let tile = COLUMNS * S::LANES;
    // SAFETY: reads stay within the columns `j..j + n` of `w`, and writes within the panel. A prefetch may lie
    // beyond them.
    unsafe {
        for k in 0..job.k {
            let row = job.w.add(k * job.w_stride + j);
            let ahead = row.wrapping_add(PREFETCH_ROWS * job.w_stride);
            for c in (0..n).step_by(S::LANES) {
                prefetch(ahead.wrapping_add(c));
                let part = (n - c < S::LANES).then_some(n - c);
                let to = c / tile * tile * job.k + k * tile + c % tile;
                s.store(panel.add(to), load_part(s, row, c, part));
            }
            let written = n.next_multiple_of(S::LANES);
            for c in (written..n.next_multiple_of(tile)).step_by(S::LANES) {
                let to = c / tile * tile * job.k + k * tile + c % tile;
                s.store(panel.add(to), s.zero());
            }
        }
    }
}

/// Computes the `n` columns of one tile from `j` for all rows, in groups of about equal size.
///
/// # Safety
/// As for [`Kernel`](super::Kernel); `columns` is a packed tile.
#[inline(always)]
unsafe fn tiles<S: Simd>(s: S, job: &Job, columns: *const f32, j: usize, n: usize) {
    let most = if S::REGISTER_COUNT >= 32 {
        ROWS_32
    } else {
        ROWS_16
    };
    let groups = job.rows.div_ceil(most);
    for group in 0..groups {
        let first = group * job.rows / groups;
        let rows = (group + 1) * job.rows / groups - first;
        // SAFETY: the caller upholds the contract.
        unsafe {
            match rows {
                1 => tile::<S, 1>(s, job, columns, first, j, n),
                2 => tile::<S, 2>(s, job, columns, first, j, n),
                3 => tile::<S, 3>(s, job, columns, first, j, n),
                4 => tile::<S, 4>(s, job, columns, first, j, n),
                5 => tile::<S, 5>(s, job, columns, first, j, n),
                6 => tile::<S, 6>(s, job, columns, first, j, n),
                7 => tile::<S, 7>(s, job, columns, first, j, n),
                _ => tile::<S, 8>(s, job, columns, first, j, n),
            }
        }
    }
}

/// Computes `n` columns from `j` for `M` rows from `first`.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize>(
    s: S,
    job: &Job,
    columns: *const f32,
    first: usize,
    j: usize,
    n: usize,
) {
    // The columns of a register of the tile that are part of the result; `None` if all are.
    let part = |c: usize| {
        let left = n.saturating_sub(c * S::LANES);
        (left < S::LANES).then_some(left)
    };
    // SAFETY: the caller guarantees a valid job and a packed tile; results stay within `n` columns.
    unsafe {
        let x = job.x.add(first * job.x_stride);
        let mut sums = [[s.zero(); COLUMNS]; M];
        if let Some(bias) = job.out.init(j) {
            for sums in &mut sums {
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = load_part(s, bias.wrapping_add(c * S::LANES), 0, part(c));
                }
            }
        }
        for k in 0..job.k {
            let mut values = [s.zero(); COLUMNS];
            for (c, value) in values.iter_mut().enumerate() {
                *value = s.load(columns.add((k * COLUMNS + c) * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = s.splat_f32s(*x.add(r * job.x_stride + k));
                for (sum, &value) in sums.iter_mut().zip(&values) {
                    *sum = s.fma(x, value, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                let out = job.out.element(first + r, j).wrapping_add(c * S::LANES);
                store_part(s, out, 0, part(c), sum);
            }
        }
    }
}
