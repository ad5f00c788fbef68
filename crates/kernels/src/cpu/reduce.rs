//! Sums over an array's rows.

use pulp::Simd;

use super::par::{self, Shared};
use super::scratch;
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// `sums += ` the sum of `x`'s rows: the gradient of a bias.
pub fn add_column_sums(x: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let Some(rows) = x.len().checked_div(width) else {
        return;
    };
    assert_eq!(rows * width, x.len());
    reduce_rows(rows, width, sums, |first, count, partial| {
        add_rows(&x[first * width..(first + count) * width], partial);
    });
}

/// Sums rows in fixed groups and the groups in order: `group(first, count, partial)` adds rows
/// `first..first + count` to `partial`, `width` numbers that start at 0; `sums` grows by all of
/// the partial sums.
pub(crate) fn reduce_rows(
    rows: usize,
    width: usize,
    sums: &mut [f32],
    group: impl Fn(usize, usize, &mut [f32]) + Sync + Send,
) {
    assert_eq!(sums.len(), width);
    // At most 64 groups: their sums must be added up again.
    let rows_per_group = par::rows_per_task(width).max(rows.div_ceil(64));
    let groups = rows.div_ceil(rows_per_group);
    let padded = scratch::padded_len(width);
    scratch::with_call_scratch(groups * padded, |partials| {
        let at = Shared::new(partials);
        par::for_each(groups, rows_per_group.min(rows) * width, |i| {
            // SAFETY: each group has partial sums of its own.
            let partial = unsafe { at.slice(i * padded, width) };
            partial.fill(0.0);
            group(
                i * rows_per_group,
                rows_per_group.min(rows - i * rows_per_group),
                partial,
            );
        });
        for i in 0..groups {
            add_rows(&partials[i * padded..i * padded + width], sums);
        }
    });
}

dispatch!(fn add_rows(rows: &[f32], sums: &mut [f32]) => add_rows_body);

/// Columns whose sums stay in registers while all rows go by, in registers.
const REGISTERS: usize = 4;

#[inline(always)]
fn add_rows_body<S: Simd>(s: S, rows: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let (from, to) = (rows.as_ptr(), sums.as_mut_ptr());
    let unrolled = width - width % (REGISTERS * S::LANES);
    for at in (0..unrolled).step_by(REGISTERS * S::LANES) {
        let mut acc = [s.zero(); REGISTERS];
        for row in (0..rows.len()).step_by(width) {
            for (i, sum) in acc.iter_mut().enumerate() {
                // SAFETY: rows have `width` numbers, and `at` leaves room for COLUMNS registers.
                *sum = s.add_f32s(*sum, unsafe { s.load(from.add(row + at + i * S::LANES)) });
            }
        }
        for (i, sum) in acc.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let to = to.add(at + i * S::LANES);
                s.store(to, s.add_f32s(s.load(to), sum));
            }
        }
    }
    for_lanes!(s, width - unrolled, |at, part| {
        // SAFETY: `at` and `part` stay within the rest of each row.
        unsafe {
            let mut sum = load_part(s, to, unrolled + at, part);
            for row in (0..rows.len()).step_by(width) {
                sum = s.add_f32s(sum, load_part(s, from, row + unrolled + at, part));
            }
            store_part(s, to, unrolled + at, part, sum);
        }
    });
}
