//! Column sums: reductions over the rows of an array.

use pulp::Simd;

use super::par::{self, Shared};
use super::scratch;
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// `sums += column sums of x`: the gradient of a bias.
pub(crate) fn add_column_sums(x: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let Some(rows) = x.len().checked_div(width) else {
        return;
    };
    assert_eq!(rows.checked_mul(width), Some(x.len()));
    reduce_rows(rows, width, sums, |first, count, partial| {
        add_rows(&x[first * width..(first + count) * width], partial);
    });
}

/// Sums rows in fixed groups, then adds the groups in order. `group(first, count, partial)` adds
/// rows `first..first + count` to `partial`, which has `width` elements and starts at 0; `sums`
/// grows by all partial sums.
pub(crate) fn reduce_rows(
    rows: usize,
    width: usize,
    sums: &mut [f32],
    group: impl Fn(usize, usize, &mut [f32]) + Sync + Send,
) {
    assert_eq!(sums.len(), width);
    // At most 64 groups, since their sums must be added again.
    let rows_per_group = par::rows_per_task(width).max(rows.div_ceil(64));
    let groups = rows.div_ceil(rows_per_group);
    let padded = scratch::padded_len(width);
    scratch::with_call_scratch(groups * padded, |partials: &mut [f32]| {
        let partials_ptr = Shared::new(partials);
        par::for_each(groups, rows_per_group.min(rows) * width, |i| {
            // SAFETY: each group has its own partial sums, which are within the scratch buffer.
            let partial = unsafe { partials_ptr.slice(i * padded, width) };
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

dispatch!(
    /// Adds the rows of an array, of the length of `sums`, to `sums`.
    fn add_rows(rows: &[f32], sums: &mut [f32]) => add_rows_body
);

/// Registers of column sums held while iterating over all rows.
const REGISTERS: usize = 4;

#[inline(always)]
fn add_rows_body<S: Simd>(s: S, rows: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    assert!(rows.len().is_multiple_of(width));
    let (from, to) = (rows.as_ptr(), sums.as_mut_ptr());
    let unrolled = width - width % (REGISTERS * S::LANES);
    for offset in (0..unrolled).step_by(REGISTERS * S::LANES) {
        let mut acc = [s.zero(); REGISTERS];
        for row in (0..rows.len()).step_by(width) {
            for (i, sum) in acc.iter_mut().enumerate() {
                // SAFETY: rows have `width` elements, and `offset` leaves room for REGISTERS registers.
                *sum = s.add_f32s(*sum, unsafe {
                    s.load(from.add(row + offset + i * S::LANES))
                });
            }
        }
        for (i, sum) in acc.into_iter().enumerate() {
            // SAFETY: `sums` has `width` elements, and `offset` leaves room for REGISTERS registers.
            unsafe {
                let to = to.add(offset + i * S::LANES);
                s.store(to, s.add_f32s(s.load(to), sum));
            }
        }
    }
    for_lanes!(s, width - unrolled, |offset, part| {
        // SAFETY: `offset` and `part` stay within the remaining columns of each row.
        unsafe {
            let mut sum = load_part(s, to, unrolled + offset, part);
            for row in (0..rows.len()).step_by(width) {
                sum = s.add_f32s(sum, load_part(s, from, row + unrolled + offset, part));
            }
            store_part(s, to, unrolled + offset, part, sum);
        }
    });
}
