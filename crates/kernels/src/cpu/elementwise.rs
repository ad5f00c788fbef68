//! Elementwise sums of arrays, and of an array and a row.

use pulp::Simd;

use super::par::{self, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// `out = a + b`.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(a.len() == out.len() && b.len() == out.len());
    let out_ptr = Shared::new(out);
    par::for_each_chunk(a.len(), out_ptr.as_ptr(), |offset, n| {
        // SAFETY: chunks are within `out` and do not overlap.
        let out = unsafe { out_ptr.slice(offset, n) };
        add_chunk(&a[offset..offset + n], &b[offset..offset + n], out);
    });
}

/// `y += alpha * x`.
pub fn add_scaled(y: &mut [f32], alpha: f32, x: &[f32]) {
    assert_eq!(x.len(), y.len());
    let y_ptr = Shared::new(y);
    par::for_each_chunk(x.len(), y_ptr.as_ptr(), |offset, n| {
        // SAFETY: chunks are within `y` and do not overlap.
        let y = unsafe { y_ptr.slice(offset, n) };
        add_scaled_chunk(y, alpha, &x[offset..offset + n]);
    });
}

/// `x *= alpha`.
pub fn scale(x: &mut [f32], alpha: f32) {
    let len = x.len();
    let x_ptr = Shared::new(x);
    par::for_each_chunk(len, x_ptr.as_ptr(), |offset, n| {
        // SAFETY: chunks are within `x` and do not overlap.
        let x = unsafe { x_ptr.slice(offset, n) };
        // A plain loop: it is bound by memory bandwidth in any case.
        for x in x {
            *x *= alpha;
        }
    });
}

/// Adds `bias` to each row of `x`.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    let Some(rows) = x.len().checked_div(width) else {
        return;
    };
    assert_eq!(rows * width, x.len());
    let x_ptr = Shared::new(x);
    par::for_each_row_group(rows, width, |first, count| {
        for row in first..first + count {
            // SAFETY: rows are within `x` and do not overlap.
            let x = unsafe { x_ptr.slice(row * width, width) };
            add_scaled_chunk(x, 1.0, bias);
        }
    });
}

dispatch!(fn add_chunk(a: &[f32], b: &[f32], out: &mut [f32]) => add_body);
dispatch!(fn add_scaled_chunk(y: &mut [f32], alpha: f32, x: &[f32]) => add_scaled_body);

#[inline(always)]
fn add_body<S: Simd>(s: S, a: &[f32], b: &[f32], out: &mut [f32]) {
    for_lanes!(s, out.len().min(a.len()).min(b.len()), |offset, part| {
        // SAFETY: `offset` and `part` stay within the shortest slice.
        unsafe {
            let sum = s.add_f32s(
                load_part(s, a.as_ptr(), offset, part),
                load_part(s, b.as_ptr(), offset, part),
            );
            store_part(s, out.as_mut_ptr(), offset, part, sum);
        }
    });
}

#[inline(always)]
fn add_scaled_body<S: Simd>(s: S, y: &mut [f32], alpha: f32, x: &[f32]) {
    let alpha = s.splat_f32s(alpha);
    for_lanes!(s, y.len().min(x.len()), |offset, part| {
        // SAFETY: `offset` and `part` stay within the shorter slice.
        unsafe {
            let sum = s.fma(
                alpha,
                load_part(s, x.as_ptr(), offset, part),
                load_part(s, y.as_ptr(), offset, part),
            );
            store_part(s, y.as_mut_ptr(), offset, part, sum);
        }
    });
}
