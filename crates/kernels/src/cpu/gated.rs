//! Gated activations: `f(gate) * up` (`SwiGLU`, GEGLU and related variants).

use pulp::Simd;

use super::activation::{value, value_and_derivative};
use super::par::{self, Shared};
use super::simd::{dispatch, for_lanes, load_part, store_part};
use crate::Activation;

/// Inputs of a gated activation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatedInput<'a> {
    /// Input of the activation function.
    pub(crate) gate: &'a [f32],
    /// Multiplied by the activated gate.
    pub(crate) up: &'a [f32],
}

/// `hidden = f(gate) * up`.
pub(crate) fn forward(f: Activation, x: GatedInput<'_>, hidden: &mut [f32]) {
    assert!(x.gate.len() == hidden.len() && x.up.len() == hidden.len());
    let hidden_ptr = Shared::new(hidden);
    par::for_each_chunk(x.gate.len(), hidden_ptr.as_ptr(), |offset, n| {
        let x = slice(x, offset, n);
        // SAFETY: chunks are within `hidden` and do not overlap.
        forward_chunk(f, x, unsafe { hidden_ptr.slice(offset, n) });
    });
}

/// Computes the gradients of gate and up from the output gradient.
pub(crate) fn backward(
    f: Activation,
    x: GatedInput<'_>,
    grad: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let len = grad.len();
    assert!(x.gate.len() == len && x.up.len() == len && d_gate.len() == len && d_up.len() == len);
    let (gate_ptr, up_ptr) = (Shared::new(d_gate), Shared::new(d_up));
    par::for_each_chunk(len, gate_ptr.as_ptr(), |offset, n| {
        let (x, grad) = (slice(x, offset, n), &grad[offset..offset + n]);
        // SAFETY: chunks are within both gradients and do not overlap.
        let (d_gate, d_up) = unsafe { (gate_ptr.slice(offset, n), up_ptr.slice(offset, n)) };
        backward_chunk(f, x, grad, d_gate, d_up);
    });
}

fn slice(x: GatedInput<'_>, offset: usize, n: usize) -> GatedInput<'_> {
    GatedInput {
        gate: &x.gate[offset..offset + n],
        up: &x.up[offset..offset + n],
    }
}

dispatch!(fn forward_chunk(f: Activation, x: GatedInput<'_>, hidden: &mut [f32]) => forward_body);
dispatch!(fn backward_chunk(
    f: Activation, x: GatedInput<'_>, grad: &[f32], d_gate: &mut [f32], d_up: &mut [f32],
) => backward_body);

#[inline(always)]
fn forward_body<S: Simd>(s: S, f: Activation, x: GatedInput<'_>, hidden: &mut [f32]) {
    match f {
        Activation::Gelu => forward_with::<S, 0>(s, x, hidden),
        Activation::GeluTanh => forward_with::<S, 1>(s, x, hidden),
        Activation::Relu => forward_with::<S, 2>(s, x, hidden),
        Activation::ReluSquared => forward_with::<S, 3>(s, x, hidden),
        Activation::Silu => forward_with::<S, 4>(s, x, hidden),
    }
}

#[inline(always)]
fn backward_body<S: Simd>(
    s: S,
    f: Activation,
    x: GatedInput<'_>,
    grad: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let d = (d_gate, d_up);
    match f {
        Activation::Gelu => backward_with::<S, 0>(s, x, grad, d),
        Activation::GeluTanh => backward_with::<S, 1>(s, x, grad, d),
        Activation::Relu => backward_with::<S, 2>(s, x, grad, d),
        Activation::ReluSquared => backward_with::<S, 3>(s, x, grad, d),
        Activation::Silu => backward_with::<S, 4>(s, x, grad, d),
    }
}

#[inline(always)]
fn forward_with<S: Simd, const F: usize>(s: S, x: GatedInput<'_>, hidden: &mut [f32]) {
    let len = hidden.len().min(x.gate.len()).min(x.up.len());
    for_lanes!(s, len, |offset, part| {
        // SAFETY: `offset` and `part` stay within `len`, the length of the shortest slice.
        unsafe {
            let gate = value::<S, F>(s, load_part(s, x.gate.as_ptr(), offset, part));
            let y = s.mul_f32s(gate, load_part(s, x.up.as_ptr(), offset, part));
            store_part(s, hidden.as_mut_ptr(), offset, part, y);
        }
    });
}

#[inline(always)]
fn backward_with<S: Simd, const F: usize>(
    s: S,
    x: GatedInput<'_>,
    grad: &[f32],
    (d_gate, d_up): (&mut [f32], &mut [f32]),
) {
    let len = grad.len().min(x.gate.len()).min(x.up.len());
    let len = len.min(d_gate.len()).min(d_up.len());
    for_lanes!(s, len, |offset, part| {
        // SAFETY: `offset` and `part` stay within `len`, the length of the shortest slice.
        unsafe {
            let (y, derivative) =
                value_and_derivative::<S, F>(s, load_part(s, x.gate.as_ptr(), offset, part));
            let g = load_part(s, grad.as_ptr(), offset, part);
            let g_up = s.mul_f32s(g, load_part(s, x.up.as_ptr(), offset, part));
            store_part(
                s,
                d_gate.as_mut_ptr(),
                offset,
                part,
                s.mul_f32s(g_up, derivative),
            );
            store_part(s, d_up.as_mut_ptr(), offset, part, s.mul_f32s(g, y));
        }
    });
}
