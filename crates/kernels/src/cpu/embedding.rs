//! Embedding lookup and the gradient of the table.

use pulp::Simd;

use super::par::{self, Shared};
use super::simd::{dispatch, for_lanes, load_part, store_part};

/// `out[i] = table[ids[i]]`, with rows of `width` elements.
pub(crate) fn gather(table: &[f32], width: usize, ids: &[u32], out: &mut [f32]) {
    assert_eq!(ids.len().checked_mul(width), Some(out.len()));
    check(table.len(), width, ids);
    let out = Shared::new(out);
    par::for_each_row_group(ids.len(), width, |first, count| {
        for (row, id) in (first..).zip(&ids[first..first + count]) {
            let from = *id as usize * width;
            // SAFETY: `out` has `width` elements for each id, and rows do not overlap.
            let out = unsafe { out.slice(row * width, width) };
            out.copy_from_slice(&table[from..from + width]);
        }
    });
}

/// Columns per task: whole cache lines, so that threads do not share them.
const COLUMNS: usize = 64;

/// `table_grad[ids[i]] += grad[i]`. Each task handles some columns of all rows in order, so every
/// element has a fixed summation order.
pub(crate) fn scatter_add(grad: &[f32], width: usize, ids: &[u32], table_grad: &mut [f32]) {
    assert_eq!(ids.len().checked_mul(width), Some(grad.len()));
    check(table_grad.len(), width, ids);
    let table_grad = Shared::new(table_grad);
    par::for_each(
        width.div_ceil(COLUMNS),
        ids.len() * COLUMNS.min(width),
        |task| {
            let first = task * COLUMNS;
            let columns = COLUMNS.min(width - first);
            // SAFETY: `check` verified the ids, the columns are below `width`, and no two tasks
            // share a column.
            unsafe {
                add_columns(
                    grad.as_ptr().add(first),
                    table_grad.at(first),
                    ids,
                    [width, columns],
                );
            };
        },
    );
}

fn check(table_len: usize, width: usize, ids: &[u32]) {
    assert!(width > 0 && table_len.is_multiple_of(width));
    let rows = table_len / width;
    assert!(
        ids.iter().all(|id| (*id as usize) < rows),
        "token id out of range"
    );
}

dispatch!(
    /// Adds `columns` elements of each row of the gradient to those of the table.
    ///
    /// # Safety
    /// `grad` must have a row of `width` elements for each id, and `table` for each value of an id, of
    /// which `columns` are valid; nothing else may access these columns of the table.
    unsafe fn add_columns(
        grad: *const f32, table: *mut f32, ids: &[u32], sizes: [usize; 2],
    ) => body
);

/// # Safety
/// See `add_columns`.
#[inline(always)]
unsafe fn body<S: Simd>(
    s: S,
    grad: *const f32,
    table: *mut f32,
    ids: &[u32],
    [width, columns]: [usize; 2],
) {
    for (row, id) in ids.iter().enumerate() {
        for_lanes!(s, columns, |offset, part| {
            // SAFETY: the caller guarantees rows of `width` elements, of which `columns` are valid and
            // belong to this task.
            unsafe {
                let (from, to) = (grad.add(row * width), table.add(*id as usize * width));
                let sum = s.add_f32s(
                    load_part(s, from, offset, part),
                    load_part(s, to, offset, part),
                );
                store_part(s, to, offset, part, sum);
            }
        });
    }
}
