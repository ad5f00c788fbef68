//! Activation functions of feed-forward layers, forward and backward.
//!
//! The backward pass recomputes from the pre-activation, so nothing else is saved. An optional bias
//! is added first, which saves a pass over memory.

use pulp::Simd;

use super::math::{normal_tail, sigmoid};
use super::par::{self, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// An elementwise activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)`, exact.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
    /// `x * sigmoid(x)`.
    Silu,
}

/// `out = f(x + bias)`; `bias` is a row, empty for none.
pub fn forward(f: Activation, x: &[f32], bias: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let out_ptr = Shared::new(out);
    for_each_chunk_or_row(x.len(), out_ptr.as_ptr(), bias, |offset, n, bias| {
        // SAFETY: chunks are within all arrays and do not overlap.
        unsafe { forward_chunk(f, &x[offset..offset + n], bias, out_ptr.at(offset)) };
    });
}

/// `dx = dy * f'(x + bias)`.
pub fn backward(f: Activation, x: &[f32], bias: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dx.len() && x.len() == dy.len());
    run_backward(f, x, bias, Shared::read_only(dy), Shared::new(dx));
}

/// `grad *= f'(x + bias)`: turns the output gradient into the input gradient.
pub fn backward_in_place(f: Activation, x: &[f32], bias: &[f32], grad: &mut [f32]) {
    assert_eq!(x.len(), grad.len());
    let grad = Shared::new(grad);
    run_backward(f, x, bias, grad, grad);
}

fn run_backward(f: Activation, x: &[f32], bias: &[f32], dy: Shared<f32>, dx: Shared<f32>) {
    for_each_chunk_or_row(x.len(), dx.as_ptr(), bias, |offset, n, bias| {
        let x = &x[offset..offset + n];
        // SAFETY: chunks are within all arrays and do not overlap; nothing is written through `dy`
        // unless it is `dx`.
        unsafe { backward_chunk(f, x, bias, dy.at(offset), dx.at(offset)) };
    });
}

/// Splits `0..len` for threads: into chunks, or into rows if there is a bias.
pub(super) fn for_each_chunk_or_row(
    len: usize,
    out: *const f32,
    bias: &[f32],
    work: impl Fn(usize, usize, &[f32]) + Sync + Send,
) {
    let width = bias.len();
    if width == 0 {
        par::for_each_chunk(len, out, |offset, n| work(offset, n, &[]));
        return;
    }
    assert_eq!(len % width, 0);
    par::for_each_row_group(len / width, width, |first, count| {
        for row in first..first + count {
            work(row * width, width, bias);
        }
    });
}

dispatch!(fn forward_chunk(f: Activation, x: &[f32], bias: &[f32], out: *mut f32) => forward_body);
dispatch!(fn backward_chunk(
    f: Activation, x: &[f32], bias: &[f32], dy: *const f32, dx: *mut f32,
) => backward_body);

#[inline(always)]
fn forward_body<S: Simd>(s: S, f: Activation, x: &[f32], bias: &[f32], out: *mut f32) {
    match f {
        Activation::Gelu => forward_with::<S, 0>(s, x, bias, out),
        Activation::GeluTanh => forward_with::<S, 1>(s, x, bias, out),
        Activation::Relu => forward_with::<S, 2>(s, x, bias, out),
        Activation::ReluSquared => forward_with::<S, 3>(s, x, bias, out),
        Activation::Silu => forward_with::<S, 4>(s, x, bias, out),
    }
}

#[inline(always)]
fn backward_body<S: Simd>(
    s: S,
    f: Activation,
    x: &[f32],
    bias: &[f32],
    dy: *const f32,
    dx: *mut f32,
) {
    match f {
        Activation::Gelu => backward_with::<S, 0>(s, x, bias, dy, dx),
        Activation::GeluTanh => backward_with::<S, 1>(s, x, bias, dy, dx),
        Activation::Relu => backward_with::<S, 2>(s, x, bias, dy, dx),
        Activation::ReluSquared => backward_with::<S, 3>(s, x, bias, dy, dx),
        Activation::Silu => backward_with::<S, 4>(s, x, bias, dy, dx),
    }
}

/// Processes one chunk, or one row if there is a bias.
#[inline(always)]
fn forward_with<S: Simd, const F: usize>(s: S, x: &[f32], bias: &[f32], out: *mut f32) {
    let bias = (bias.len() == x.len()).then_some(bias.as_ptr());
    for_lanes!(s, x.len(), |offset, part| {
        // SAFETY: `offset` and `part` stay within `x.len()`, the length of all arrays.
        unsafe {
            let x = load_biased(s, x, bias, offset, part);
            store_part(s, out, offset, part, value::<S, F>(s, x));
        }
    });
}

/// Processes one chunk, or one row if there is a bias.
#[inline(always)]
fn backward_with<S: Simd, const F: usize>(
    s: S,
    x: &[f32],
    bias: &[f32],
    dy: *const f32,
    dx: *mut f32,
) {
    let bias = (bias.len() == x.len()).then_some(bias.as_ptr());
    for_lanes!(s, x.len(), |offset, part| {
        // SAFETY: `offset` and `part` stay within `x.len()`, the length of all arrays.
        unsafe {
            let x = load_biased(s, x, bias, offset, part);
            let grad = s.mul_f32s(
                load_part(s, dy, offset, part),
                value_and_derivative::<S, F>(s, x).1,
            );
            store_part(s, dx, offset, part, grad);
        }
    });
}

/// Loads `x + bias`.
///
/// # Safety
/// `offset` and `part` must be within `x` and the bias.
#[inline(always)]
unsafe fn load_biased<S: Simd>(
    s: S,
    x: &[f32],
    bias: Option<*const f32>,
    offset: usize,
    part: Option<usize>,
) -> S::f32s {
    // SAFETY: the caller guarantees that `offset` and `part` are within `x` and the bias.
    unsafe {
        let value = load_part(s, x.as_ptr(), offset, part);
        match bias {
            Some(bias) => s.add_f32s(value, load_part(s, bias, offset, part)),
            None => value,
        }
    }
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
