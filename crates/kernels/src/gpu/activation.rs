//! Activation functions, plain and gated.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::{BackwardContext, Op};
use super::launch::{buffer, empty_like, len, per_element};
use crate::Activation;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Activate(pub(crate) Activation);

impl Op<1> for Activate {
    type Saved = ();
    const SAVES_INPUT: [bool; 1] = [true];

    fn forward(&self, [x]: [&CubeTensor; 1], _: [bool; 1]) -> (CubeTensor, ()) {
        let y = empty_like(x);
        if let Some((cubes, units)) = per_element(x, len(x)) {
            activate::launch(&x.client, cubes, units, buffer(x), buffer(&y), self.0);
        }
        (y, ())
    }

    fn backward(&self, ctx: BackwardContext<(), 1>) -> [Option<CubeTensor>; 1] {
        [Some(activation_gradient(self.0, ctx.input(0), &ctx.grad))]
    }
}

/// The gradient of the input `x` of an activation function.
pub(super) fn activation_gradient(f: Activation, x: &CubeTensor, dy: &CubeTensor) -> CubeTensor {
    let dx = empty_like(dy);
    if let Some((cubes, units)) = per_element(x, len(x)) {
        let args = (buffer(x), buffer(dy), buffer(&dx));
        activate_backward::launch(&x.client, cubes, units, args.0, args.1, args.2, f);
    }
    dx
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate(pub(crate) Activation);

impl Op<2> for Gate {
    type Saved = ();
    const SAVES_INPUT: [bool; 2] = [true; 2];

    fn forward(&self, [gate, up]: [&CubeTensor; 2], _: [bool; 2]) -> (CubeTensor, ()) {
        let hidden = empty_like(up);
        if let Some((cubes, units)) = per_element(up, len(up)) {
            let args = (buffer(gate), buffer(up), buffer(&hidden));
            gated::launch(&up.client, cubes, units, args.0, args.1, args.2, self.0);
        }
        (hidden, ())
    }

    fn backward(&self, ctx: BackwardContext<(), 2>) -> [Option<CubeTensor>; 2] {
        let (gate, up) = (ctx.input(0), ctx.input(1));
        let (d_gate, d_up) = (empty_like(gate), empty_like(up));
        if let Some((cubes, units)) = per_element(up, len(up)) {
            gated_backward::launch(
                &up.client,
                cubes,
                units,
                buffer(gate),
                buffer(up),
                buffer(&ctx.grad),
                buffer(&d_gate),
                buffer(&d_up),
                self.0,
            );
        }
        [Some(d_gate), Some(d_up)]
    }
}

#[cube(launch)]
fn activate(x: &[f32], y: &mut [f32], #[comptime] f: Activation) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        y[i] = value(x[i], f);
    }
}

#[cube(launch)]
fn activate_backward(x: &[f32], dy: &[f32], dx: &mut [f32], #[comptime] f: Activation) {
    let i = ABSOLUTE_POS;
    if i < dx.len() {
        dx[i] = dy[i] * derivative(x[i], f);
    }
}

#[cube(launch)]
fn gated(gate: &[f32], up: &[f32], hidden: &mut [f32], #[comptime] f: Activation) {
    let i = ABSOLUTE_POS;
    if i < hidden.len() {
        hidden[i] = value(gate[i], f) * up[i];
    }
}

#[cube(launch)]
fn gated_backward(
    gate: &[f32],
    up: &[f32],
    d_hidden: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
    #[comptime] f: Activation,
) {
    let i = ABSOLUTE_POS;
    if i < d_gate.len() {
        d_gate[i] = d_hidden[i] * up[i] * derivative(gate[i], f);
        d_up[i] = d_hidden[i] * value(gate[i], f);
    }
}

#[cube]
pub(super) fn value(x: f32, #[comptime] f: Activation) -> f32 {
    if comptime!(f == Activation::Gelu) {
        x * normal_cdf(x)
    } else if comptime!(f == Activation::GeluTanh) {
        x * approximate_cdf(x)
    } else if comptime!(f == Activation::Silu) {
        x * sigmoid(x)
    } else {
        let positive = max(x, 0.0f32);
        if comptime!(f == Activation::Relu) {
            positive
        } else {
            positive * positive
        }
    }
}

#[cube]
fn derivative(x: f32, #[comptime] f: Activation) -> f32 {
    if comptime!(f == Activation::Gelu) {
        // 1 / sqrt(2 pi)
        let density = 0.398_942_3_f32 * (-0.5f32 * x * x).exp();
        normal_cdf(x) + x * density
    } else if comptime!(f == Activation::GeluTanh) {
        let cdf = approximate_cdf(x);
        let slope = 1.595_769_f32 * (1.0f32 + 0.134_145_f32 * x * x);
        cdf + x * cdf * (1.0f32 - cdf) * slope
    } else if comptime!(f == Activation::Silu) {
        let sigmoid = sigmoid(x);
        sigmoid * (1.0f32 + x * (1.0f32 - sigmoid))
    } else if comptime!(f == Activation::Relu) {
        select(x > 0.0f32, 1.0f32, 0.0f32)
    } else {
        2.0f32 * max(x, 0.0f32)
    }
}

/// `Phi(x)`, of the standard normal distribution.
#[cube]
fn normal_cdf(x: f32) -> f32 {
    0.5f32 * (1.0f32 + Erf::erf(x * 0.707_106_77_f32))
}

/// `(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, as a logistic function: without cancellation where it
/// is small.
#[cube]
fn approximate_cdf(x: f32) -> f32 {
    sigmoid(1.595_769_f32 * (x + 0.044_715_f32 * x * x * x))
}

/// The exponential stays finite.
#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-max(x, -80.0f32)).exp())
}
