//! Softmax cross-entropy: computes loss and gradient together, row by row, while the row is in the
//! cache.

use nextword_base::IGNORE;
use pulp::Simd;

use super::math::{exp, soft_cap};
use super::par::{self, Shared};
use super::simd::{Ops, dispatch, fill_tail, for_lanes, load_part, store_part, zero_tail};

/// The targets and the transformation of the logits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    /// Length of a row of logits.
    pub(crate) vocab: usize,
    /// Target id of each row, or [`IGNORE`].
    pub(crate) targets: &'a [u32],
    /// Soft cap: replaces each logit x by `cap * tanh(x / cap)`.
    pub(crate) soft_cap: Option<f32>,
}

/// Results per row; both are 0 for ignored rows.
#[derive(Debug)]
pub(crate) struct RowLosses<'a> {
    /// Loss: minus the log of the target probability.
    pub(crate) loss: &'a mut [f32],
    /// Log-sum-exp of the logits.
    pub(crate) lse: &'a mut [f32],
}

/// Returns the sum of all rows' losses.
pub(crate) fn forward(task: &Task<'_>, logits: &[f32], losses: RowLosses<'_>) -> f64 {
    run(task, Shared::read_only(logits), logits.len(), None, losses)
}

/// Returns the sum of all rows' losses and overwrites the logits with its gradient times `scale`.
pub(crate) fn forward_backward_in_place(
    task: &Task<'_>,
    logits: &mut [f32],
    scale: f32,
    losses: RowLosses<'_>,
) -> f64 {
    let len = logits.len();
    let logits = Shared::new(logits);
    run(task, logits, len, Some(scale), losses)
}

/// Computes the losses and, if there is a `scale`, replaces the `len` logits by the gradient.
fn run(
    task: &Task<'_>,
    logits: Shared<f32>,
    len: usize,
    scale: Option<f32>,
    losses: RowLosses<'_>,
) -> f64 {
    let (rows, vocab) = (task.targets.len(), task.vocab);
    assert_eq!(rows.checked_mul(vocab), Some(len));
    assert!(losses.loss.len() == rows && losses.lse.len() == rows);
    let is_valid = |target: &u32| *target == IGNORE || (*target as usize) < vocab;
    assert!(task.targets.iter().all(is_valid), "target id out of range");
    let (loss_ptr, lse_ptr) = (Shared::new(losses.loss), Shared::new(losses.lse));
    par::for_each(rows, vocab.saturating_mul(4), |row| {
        // SAFETY: each row is within all arrays and used by one task only; the logits are written
        // only with a `scale`, which comes with a mutable borrow, and the targets were checked.
        unsafe {
            let grad = scale.map(|scale| (logits.at(row * vocab), scale));
            let row_task = Row {
                x: logits.at(row * vocab),
                vocab,
                target: task.targets[row],
                cap: task.soft_cap,
            };
            (*loss_ptr.at(row), *lse_ptr.at(row)) = run_row(&row_task, grad);
        }
    });
    // SAFETY: the slice covers the `rows` elements of the row losses, and all tasks have finished.
    let row_losses = unsafe { loss_ptr.slice(0, rows) };
    row_losses.iter().map(|loss| f64::from(*loss)).sum()
}

/// One row of logits, and its target: [`IGNORE`] or below `vocab`.
struct Row {
    x: *const f32,
    vocab: usize,
    target: u32,
    cap: Option<f32>,
}

dispatch!(
    /// Returns loss and log-sum-exp of a row, and writes the gradient times a scale.
    ///
    /// # Safety
    /// `row.vocab` floats must be readable at `row.x` and writable at the gradient, which may be the
    /// same, and the target must be [`IGNORE`] or below `row.vocab`.
    unsafe fn run_row(row: &Row, grad: Option<(*mut f32, f32)>) -> (f32, f32) => body
);

/// # Safety
/// See `run_row`.
#[inline(always)]
unsafe fn body<S: Simd>(s: S, row: &Row, grad: Option<(*mut f32, f32)>) -> (f32, f32) {
    if row.target == IGNORE {
        if let Some((grad, _)) = grad {
            // SAFETY: a row of the gradient has `vocab` elements.
            unsafe { grad.write_bytes(0, row.vocab) };
        }
        return (0.0, 0.0);
    }
    let target = row.target as usize;
    // SAFETY: the target is below `vocab`. Read before the gradient may overwrite the logit.
    let logit = soft_cap_scalar(unsafe { *row.x.add(target) }, row.cap);
    // SAFETY: the rows of logits and gradient have `vocab` elements each, and the target is below
    // `vocab`.
    unsafe {
        let (row_max, sum) = match (row.cap, grad) {
            (Some(cap), Some((grad, _))) => store_capped(s, row, cap, grad),
            (Some(cap), None) => capped_exp_sum(s, row, cap),
            (None, grad) => exp_sum(s, row.x, row.vocab, grad.map(|(grad, _)| grad)),
        };
        if let Some((grad, scale)) = grad {
            match row.cap {
                Some(cap) => capped_gradient(s, grad, row.vocab, (row_max, scale / sum), cap),
                None => scale_row(s, grad, row.vocab, scale / sum),
            }
            let derivative = row
                .cap
                .map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap));
            *grad.add(target) -= scale * derivative;
        }
        let lse = row_max + sum.ln();
        (lse - logit, lse)
    }
}

fn soft_cap_scalar(x: f32, cap: Option<f32>) -> f32 {
    cap.map_or(x, |cap| cap * (x / cap).tanh())
}

/// Returns the maximum and the sum of the exponentials relative to it, and writes the exponentials
/// to `out`.
///
/// # Safety
/// `len` floats must be readable at `x` and writable at `out`.
#[inline(always)]
unsafe fn exp_sum<S: Simd>(s: S, x: *const f32, len: usize, out: Option<*mut f32>) -> (f32, f32) {
    // SAFETY: the caller guarantees that `len` floats are readable at `x`.
    let row_max = unsafe { row_max(s, x, len) };
    let base = s.splat_f32s(row_max);
    let mut total = 0.0;
    for first in (0..len).step_by(BLOCK) {
        let mut sum = s.zero();
        for_lanes!(s, BLOCK.min(len - first), |offset, part| {
            // SAFETY: the caller guarantees that `len` floats are readable at `x` and writable at
            // `out`, and `first + offset` stays below `len`.
            unsafe {
                let e = exp(s, s.sub_f32s(load_part(s, x, first + offset, part), base));
                if let Some(out) = out {
                    store_part(s, out, first + offset, part, e);
                }
                sum = s.add_f32s(sum, zero_tail(s, e, part));
            }
        });
        total += f64::from(s.reduce_sum_f32s(sum));
    }
    (row_max, total as f32)
}

/// `exp_sum` of the capped logits.
///
/// # Safety
/// `row.vocab` floats must be readable at `row.x`.
#[inline(always)]
unsafe fn capped_exp_sum<S: Simd>(s: S, row: &Row, cap: f32) -> (f32, f32) {
    // The cap is monotonic, so the maximum logit remains the maximum.
    // SAFETY: the caller guarantees that `row.vocab` floats are readable at `row.x`.
    let row_max = soft_cap_scalar(unsafe { row_max(s, row.x, row.vocab) }, Some(cap));
    let base = s.splat_f32s(row_max);
    let mut total = 0.0;
    for first in (0..row.vocab).step_by(BLOCK) {
        let mut sum = s.zero();
        for_lanes!(s, BLOCK.min(row.vocab - first), |offset, part| {
            // SAFETY: the caller guarantees that `row.vocab` floats are readable at `row.x`.
            let y = soft_cap(s, unsafe { load_part(s, row.x, first + offset, part) }, cap);
            let e = exp(s, s.sub_f32s(y, base));
            sum = s.add_f32s(sum, zero_tail(s, e, part));
        });
        total += f64::from(s.reduce_sum_f32s(sum));
    }
    (row_max, total as f32)
}

/// `exp_sum` of the capped logits; writes the capped logits to `out`.
///
/// # Safety
/// `row.vocab` floats must be readable at `row.x` and writable at `out`.
#[inline(always)]
unsafe fn store_capped<S: Simd>(s: S, row: &Row, cap: f32, out: *mut f32) -> (f32, f32) {
    for_lanes!(s, row.vocab, |offset, part| {
        // SAFETY: the caller guarantees that `row.vocab` floats are readable at `row.x` and
        // writable at `out`.
        unsafe {
            let y = soft_cap(s, load_part(s, row.x, offset, part), cap);
            store_part(s, out, offset, part, y);
        }
    });
    // SAFETY: `out` was just written and has `row.vocab` floats.
    unsafe { exp_sum(s, out, row.vocab, None) }
}

/// Replaces capped logits y by `e^(y - row_max) * factor * (1 - (y / cap)^2)`.
///
/// # Safety
/// `len` floats must be readable and writable at `y`.
#[inline(always)]
unsafe fn capped_gradient<S: Simd>(
    s: S,
    y: *mut f32,
    len: usize,
    (row_max, factor): (f32, f32),
    cap: f32,
) {
    for_lanes!(s, len, |offset, part| {
        // SAFETY: the caller guarantees that `len` floats are valid at `y`.
        unsafe {
            let value = load_part(s, y, offset, part);
            let e = exp(s, s.sub_f32s(value, s.splat_f32s(row_max)));
            let t = s.mul_f32s(value, s.splat_f32s(1.0 / cap));
            let derivative = s.sub_f32s(s.splat_f32s(1.0), s.mul_f32s(t, t));
            let grad = s.mul_f32s(s.mul_f32s(e, s.splat_f32s(factor)), derivative);
            store_part(s, y, offset, part, grad);
        }
    });
}

/// # Safety
/// `len` floats must be readable and writable at `x`.
#[inline(always)]
unsafe fn scale_row<S: Simd>(s: S, x: *mut f32, len: usize, factor: f32) {
    for_lanes!(s, len, |offset, part| {
        // SAFETY: the caller guarantees that `len` floats are valid at `x`.
        unsafe {
            let y = s.mul_f32s(load_part(s, x, offset, part), s.splat_f32s(factor));
            store_part(s, x, offset, part, y);
        }
    });
}

/// Number of elements accumulated in f32 before widening to f64: long sums in f32 lose precision.
const BLOCK: usize = 4096;

/// # Safety
/// `len` floats must be readable at `x`.
#[inline(always)]
unsafe fn row_max<S: Simd>(s: S, x: *const f32, len: usize) -> f32 {
    let lowest = s.splat_f32s(f32::NEG_INFINITY);
    let mut row_max = lowest;
    for_lanes!(s, len, |offset, part| {
        // SAFETY: the caller guarantees that `len` floats are readable at `x`.
        let x = unsafe { load_part(s, x, offset, part) };
        row_max = s.max_f32s(row_max, fill_tail(s, x, lowest, part));
    });
    s.reduce_max_f32s(row_max)
}
