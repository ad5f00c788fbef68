//! `LayerNorm` and `RMSNorm` over the last axis.

use burn::tensor::Tensor;

use crate::NormKind;

/// Normalizes over the last axis: `(x - mean) / sqrt(var + eps) * weight + bias`, or for `RMSNorm`
/// `x / sqrt(mean(x^2) + eps) * weight`.
///
/// Keeps the shape of `x`; `weight` and `bias` have the length of the last axis.
///
/// # Panics
/// If the shapes do not match.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{NormKind, normalize};
///
/// let device = Device::flex();
/// let x = Tensor::<2>::from_floats([[3.0, 4.0]], &device);
/// let y = normalize(NormKind::Rms, x, Tensor::ones([2], &device), None, 0.0);
/// let rms = 12.5f64.sqrt(); // of 3 and 4
/// assert!(y.all_close(Tensor::from_floats([[3.0 / rms, 4.0 / rms]], &device), None, Some(1e-6)));
/// ```
pub fn normalize<const D: usize>(
    kind: NormKind,
    x: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<D> {
    let width = x.dims()[D - 1];
    for (name, parameter) in [("weight", Some(&weight)), ("bias", bias.as_ref())] {
        let len = parameter.map_or(width, |parameter| parameter.dims()[0]);
        assert_eq!(
            len, width,
            "the {name} of a norm has {len} elements, not {width} as the last axis"
        );
    }
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::normalize(kind, x, weight, bias, eps);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&x) {
        let eps = eps as f32;
        let op = crate::gpu::norm::Normalize { kind, eps };
        return match bias {
            Some(bias) => crate::gpu::apply(op, [x.into(), weight.into(), bias.into()]),
            None => crate::gpu::apply(op, [x.into(), weight.into()]),
        };
    }
    crate::reference::normalize(kind, x, weight, bias, eps)
}

#[cfg(feature = "flex")]
mod fast {
    use burn::tensor::Tensor;

    use crate::NormKind;
    use crate::cpu::{norm as kernel, norm_backward};
    use crate::fused::{BackwardContext, Buffer, Op, apply};

    #[derive(Clone, Copy, Debug)]
    struct Normalize {
        kind: NormKind,
        eps: f32,
    }

    /// Mean and 1 / standard deviation of each row.
    type Stats = (Buffer, Buffer);

    pub(super) fn normalize<const D: usize>(
        kind: NormKind,
        x: Tensor<D>,
        weight: Tensor<1>,
        bias: Option<Tensor<1>>,
        eps: f64,
    ) -> Tensor<D> {
        let shape = x.dims();
        let eps = eps as f32;
        let op = Normalize { kind, eps };
        match bias {
            Some(bias) => apply(op, [x.into(), weight.into(), bias.into()], shape),
            None => apply(op, [x.into(), weight.into()], shape),
        }
    }

    impl Normalize {
        fn kernel<'a>(self, weight: &'a [f32], bias: &'a [f32]) -> kernel::Norm<'a> {
            kernel::Norm {
                kind: self.kind,
                weight,
                bias,
                eps: self.eps,
            }
        }

        fn run(self, x: &[f32], weight: &[f32], bias: &[f32]) -> (Buffer, Stats) {
            let rows = x.len().checked_div(weight.len()).unwrap_or(0);
            let (mut mean, mut rstd) = (Buffer::new(rows), Buffer::new(rows));
            let mut y = Buffer::new(x.len());
            let stats = kernel::Stats {
                mean: &mut mean,
                rstd: &mut rstd,
            };
            kernel::forward(&self.kernel(weight, bias), x, &mut y, stats);
            (y, (mean, rstd))
        }

        fn gradients(
            self,
            [x, weight]: [&[f32]; 2],
            (mean, rstd): &Stats,
            dy: &[f32],
            has_bias: bool,
        ) -> [Buffer; 3] {
            let mut dx = Buffer::new(x.len());
            let mut dw = Buffer::zeros(weight.len());
            let mut db = Buffer::zeros(if has_bias { weight.len() } else { 0 });
            let grads = norm_backward::NormGrads {
                x: &mut dx,
                weight: &mut dw,
                bias: &mut db,
            };
            norm_backward::backward(&self.kernel(weight, &[]), x, (mean, rstd), dy, grads);
            [dx, dw, db]
        }
    }

    impl Op<2> for Normalize {
        type Saved = Stats;
        const SAVES_INPUT: [bool; 2] = [true; 2];

        fn forward(&self, [x, weight]: [&[f32]; 2], _needs_grad: [bool; 2]) -> (Buffer, Stats) {
            self.run(x, weight, &[])
        }

        fn backward(&self, ctx: BackwardContext<'_, Stats, 2>) -> [Option<Buffer>; 2] {
            let [dx, dw, _] = self.gradients(ctx.inputs, &ctx.saved, ctx.grad, false);
            [
                ctx.needs_grad[0].then_some(dx),
                ctx.needs_grad[1].then_some(dw),
            ]
        }
    }

    impl Op<3> for Normalize {
        type Saved = Stats;
        const SAVES_INPUT: [bool; 3] = [true, true, false];

        fn forward(
            &self,
            [x, weight, bias]: [&[f32]; 3],
            _needs_grad: [bool; 3],
        ) -> (Buffer, Stats) {
            self.run(x, weight, bias)
        }

        fn backward(&self, ctx: BackwardContext<'_, Stats, 3>) -> [Option<Buffer>; 3] {
            let [x, weight, _] = ctx.inputs;
            let [dx, dw, db] = self.gradients([x, weight], &ctx.saved, ctx.grad, true);
            let [need_x, need_w, need_b] = ctx.needs_grad;
            [
                need_x.then_some(dx),
                need_w.then_some(dw),
                need_b.then_some(db),
            ]
        }
    }
}
