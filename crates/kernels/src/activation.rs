//! Activation functions of feed-forward layers, plain and gated.

use burn::tensor::Tensor;

use crate::Activation;

/// `f(x)`, elementwise.
pub fn activate<const D: usize>(f: Activation, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        let shape = x.dims();
        return crate::fused::apply(fast::Activate(f), [x.into()], shape);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&x) {
        return crate::gpu::apply(crate::gpu::activation::Activate(f), [x.into()]);
    }
    crate::reference::activate(f, x)
}

/// `f(gate) * up`, elementwise (Shazeer 2020, arXiv 2002.05202).
///
/// # Panics
/// If the shapes differ.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor, TensorData};
/// use nextword_kernels::{Activation, gate};
///
/// let device = Device::flex();
/// let hidden = Tensor::<1>::from_floats([-1.0, 2.0], &device);
/// let up = Tensor::<1>::from_floats([10.0, 10.0], &device);
/// assert_eq!(gate(Activation::Relu, hidden, up).into_data(), TensorData::from([0.0f32, 20.0]));
/// ```
pub fn gate<const D: usize>(f: Activation, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(
        gate.dims(),
        up.dims(),
        "gate and up projection differ in shape"
    );
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&gate) {
        let shape = gate.dims();
        return crate::fused::apply(fast::Gate(f), [gate.into(), up.into()], shape);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&gate) {
        return crate::gpu::apply(crate::gpu::activation::Gate(f), [gate.into(), up.into()]);
    }
    crate::reference::activate(f, gate) * up
}

#[cfg(feature = "flex")]
mod fast {
    use crate::Activation;
    use crate::cpu::{activation as kernel, gated};
    use crate::fused::{BackwardContext, Buffer, Op};

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Activate(pub(super) Activation);

    impl Op<1> for Activate {
        type Saved = ();
        const SAVES_INPUT: [bool; 1] = [true];

        fn forward(&self, [x]: [&[f32]; 1], _needs_grad: [bool; 1]) -> (Buffer, ()) {
            let mut y = Buffer::new(x.len());
            kernel::forward(self.0, x, &mut y);
            (y, ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
            let mut dx = Buffer::new(ctx.grad.len());
            kernel::backward(self.0, ctx.inputs[0], ctx.grad, &mut dx);
            [Some(dx)]
        }
    }

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Gate(pub(super) Activation);

    impl Op<2> for Gate {
        type Saved = ();
        const SAVES_INPUT: [bool; 2] = [true; 2];

        fn forward(&self, [gate, up]: [&[f32]; 2], _needs_grad: [bool; 2]) -> (Buffer, ()) {
            let mut hidden = Buffer::new(up.len());
            gated::forward(self.0, gated::GatedInput { gate, up }, &mut hidden);
            (hidden, ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 2>) -> [Option<Buffer>; 2] {
            let [gate, up] = ctx.inputs;
            let (mut d_gate, mut d_up) = (Buffer::new(up.len()), Buffer::new(up.len()));
            let inputs = gated::GatedInput { gate, up };
            gated::backward(self.0, inputs, ctx.grad, &mut d_gate, &mut d_up);
            [Some(d_gate), Some(d_up)]
        }
    }
}
