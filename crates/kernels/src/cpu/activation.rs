//! Activation functions of feed-forward layers, forward and backward.
//!
//! The backward pass recomputes from the pre-activation, so nothing else is saved.

use pulp::Simd;

use super::math::{normal_tail, sigmoid};
use super::par::{self, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use crate::Activation;

/// `out = f(x)`.
pub(crate) fn forward(f: Activation, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let out_ptr = Shared::new(out);
    par::for_each_chunk(x.len(), out_ptr.as_ptr(), |offset, n| {
        // SAFETY: chunks are within `out` and do not overlap.
        let out = unsafe { out_ptr.slice(offset, n) };
        forward_chunk(f, &x[offset..offset + n], out);
    });
}

/// `dx = dy * f'(x)`.
pub(crate) fn backward(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dx.len() && x.len() == dy.len());
    let dx_ptr = Shared::new(dx);
    par::for_each_chunk(x.len(), dx_ptr.as_ptr(), |offset, n| {
        let range = offset..offset + n;
        // SAFETY: chunks are within `dx` and do not overlap.
        let dx = unsafe { dx_ptr.slice(offset, n) };
        backward_chunk(f, &x[range.clone()], &dy[range], dx);
    });
}

dispatch!(fn forward_chunk(f: Activation, x: &[f32], out: &mut [f32]) => forward_body);
dispatch!(fn backward_chunk(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) => backward_body);

#[inline(always)]
fn forward_body<S: Simd>(s: S, f: Activation, x: &[f32], out: &mut [f32]) {
    match f {
        Activation::Gelu => forward_with::<S, 0>(s, x, out),
        Activation::GeluTanh => forward_with::<S, 1>(s, x, out),
        Activation::Relu => forward_with::<S, 2>(s, x, out),
        Activation::ReluSquared => forward_with::<S, 3>(s, x, out),
        Activation::Silu => forward_with::<S, 4>(s, x, out),
    }
}

#[inline(always)]
fn backward_body<S: Simd>(s: S, f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    match f {
        Activation::Gelu => backward_with::<S, 0>(s, x, dy, dx),
        Activation::GeluTanh => backward_with::<S, 1>(s, x, dy, dx),
        Activation::Relu => backward_with::<S, 2>(s, x, dy, dx),
        Activation::ReluSquared => backward_with::<S, 3>(s, x, dy, dx),
        Activation::Silu => backward_with::<S, 4>(s, x, dy, dx),
    }
}

#[inline(always)]
fn forward_with<S: Simd, const F: usize>(s: S, x: &[f32], out: &mut [f32]) {
    for_lanes!(s, x.len().min(out.len()), |offset, part| {
        // SAFETY: `offset` and `part` stay within the shorter slice.
        unsafe {
            let x = load_part(s, x.as_ptr(), offset, part);
            store_part(s, out.as_mut_ptr(), offset, part, value::<S, F>(s, x));
        }
    });
}

#[inline(always)]
fn backward_with<S: Simd, const F: usize>(s: S, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for_lanes!(s, x.len().min(dy.len()).min(dx.len()), |offset, part| {
        // SAFETY: `offset` and `part` stay within the shortest slice.
        unsafe {
            let x = load_part(s, x.as_ptr(), offset, part);
            let grad = s.mul_f32s(
                load_part(s, dy.as_ptr(), offset, part),
                value_and_derivative::<S, F>(s, x).1,
            );
            store_part(s, dx.as_mut_ptr(), offset, part, grad);
        }
    });
}

/// `2 sqrt(2 / pi)` and the cubic coefficient of the tanh approximation of GELU, which takes one
/// exponential when written as `(1 + tanh(a)) / 2 = sigmoid(2 a)`.
const TANH_SCALE: f32 = 1.595_769_2;
const TANH_CUBIC: f32 = 0.044_715;

/// Value of function number `F` (in the order of [`Activation`]) at `x`.
#[inline(always)]
pub(super) fn value<S: Simd, const F: usize>(s: S, x: S::f32s) -> S::f32s {
    match F {
        0 => {
            // max(x, 0) - |x| Phi(-|x|): accurate for large x, unlike x (1 + erf) / 2.
            let abs = s.abs_f32s(x);
            let (tail, _) = normal_tail(s, abs);
            s.negate_mul_add_e_f32s(abs, tail, s.max_f32s(x, s.zero()))
        }
        1 => s.mul_f32s(x, sigmoid(s, tanh_inner(s, x))),
        2 => s.max_f32s(x, s.zero()),
        3 => {
            let x = s.max_f32s(x, s.zero());
            s.mul_f32s(x, x)
        }
        _ => s.mul_f32s(x, sigmoid(s, x)),
    }
}

/// Value and derivative of function number `F` at `x`.
#[inline(always)]
pub(super) fn value_and_derivative<S: Simd, const F: usize>(
    s: S,
    x: S::f32s,
) -> (S::f32s, S::f32s) {
    let one = s.splat_f32s(1.0);
    match F {
        0 => {
            let (tail, density) = normal_tail(s, s.abs_f32s(x));
            let negative = s.less_than_f32s(x, s.zero());
            let phi = s.select_f32s(negative, tail, s.sub_f32s(one, tail));
            let density = s.mul_f32s(density, s.splat_f32s(0.398_942_3));
            (s.mul_f32s(x, phi), s.fma(x, density, phi))
        }
        1 => {
            let phi = sigmoid(s, tanh_inner(s, x));
            let square = s.mul_f32s(x, x);
            let inner_derivative = s.horner(
                square,
                s.splat_f32s(3.0 * TANH_SCALE * TANH_CUBIC),
                TANH_SCALE,
            );
            let y = s.mul_f32s(x, phi);
            let y_one_minus_phi = s.mul_f32s(y, s.sub_f32s(one, phi));
            (y, s.fma(y_one_minus_phi, inner_derivative, phi))
        }
        2 => {
            let positive = s.greater_than_f32s(x, s.zero());
            (
                s.max_f32s(x, s.zero()),
                s.select_f32s(positive, one, s.zero()),
            )
        }
        3 => {
            let x = s.max_f32s(x, s.zero());
            (s.mul_f32s(x, x), s.add_f32s(x, x))
        }
        _ => {
            let sigma = sigmoid(s, x);
            let y = s.mul_f32s(x, sigma);
            (y, s.fma(y, s.sub_f32s(one, sigma), sigma))
        }
    }
}

#[inline(always)]
fn tanh_inner<S: Simd>(s: S, x: S::f32s) -> S::f32s {
    let square = s.mul_f32s(x, x);
    let scale = s.horner(square, s.splat_f32s(TANH_SCALE * TANH_CUBIC), TANH_SCALE);
    s.mul_f32s(x, scale)
}
