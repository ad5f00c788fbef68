//! Elementwise sums and multiples of arrays.

use pulp::Simd;

use super::par::{self, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// `y += alpha * x`.
pub(crate) fn add_scaled(y: &mut [f32], alpha: f32, x: &[f32]) {
    assert_eq!(x.len(), y.len());
    let y_ptr = Shared::new(y);
    par::for_each_chunk(x.len(), y_ptr.as_ptr(), |offset, n| {
        // SAFETY: chunks are within `y` and do not overlap.
        let y = unsafe { y_ptr.slice(offset, n) };
        add_scaled_chunk(y, alpha, &x[offset..offset + n]);
    });
}

/// `x *= alpha`.
pub(crate) fn scale(x: &mut [f32], alpha: f32) {
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

dispatch!(fn add_scaled_chunk(y: &mut [f32], alpha: f32, x: &[f32]) => add_scaled_body);

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
