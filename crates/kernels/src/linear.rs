//! Linear layers: `y = x W + b`.

use burn::tensor::Tensor;

use crate::Precision;

/// `x W + bias`: `[batch, seq, d_in]` to `[batch, seq, d_out]`, `weight` is `[d_in, d_out]`.
///
/// # Panics
/// If the shapes do not match.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use nextword_kernels::{linear, reference};
///
/// let device = Device::flex();
/// let random = |shape| Tensor::<3>::random(shape, Distribution::Default, &device);
/// let (x, weight) = (random([2, 5, 16]), random([1, 16, 32]).squeeze_dim::<2>(0));
/// let fast = linear(x.clone(), weight.clone(), None);
/// assert_eq!(fast.dims(), [2, 5, 32]);
/// assert!(fast.all_close(reference::linear(x, weight, None), None, Some(1e-5)));
/// ```
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    linear_with_precision(Precision::F32, x, weight, bias)
}

/// Like [`linear`], with the product in `precision`. Weights, output and gradients are f32.
///
/// # Panics
/// If the shapes do not match.
pub fn linear_with_precision(
    precision: Precision,
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    check_shapes(&x, weight.dims(), bias.as_ref());
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::linear(precision, x, weight, bias, fast::WeightLayout::InOut);
    }
    #[cfg(feature = "gpu")]
    if precision == Precision::F32 && crate::gpu::linear::supports(&x, &weight) {
        return crate::gpu::linear::linear(x, weight, false, bias, None, None);
    }
    crate::reference::linear_with_precision(precision, x, weight, bias)
}

/// `x table^T + bias`, for an output layer tied to the embedding `table`, `[d_out, d_in]`.
///
/// # Panics
/// If the shapes do not match.
pub fn linear_table(
    precision: Precision,
    x: Tensor<3>,
    table: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<3> {
    let [d_out, d_in] = table.dims();
    check_shapes(&x, [d_in, d_out], bias.as_ref());
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        return fast::linear(precision, x, table, bias, fast::WeightLayout::OutIn);
    }
    #[cfg(feature = "gpu")]
    if precision == Precision::F32 && crate::gpu::linear::supports(&x, &table) {
        return crate::gpu::linear::linear(x, table, true, bias, None, None);
    }
    crate::reference::linear_with_precision(precision, x, table.transpose(), bias)
}

/// Panics unless the weight of this shape and the bias fit the input.
pub(crate) fn check_shapes(x: &Tensor<3>, [d_in, d_out]: [usize; 2], bias: Option<&Tensor<1>>) {
    let [_, _, width] = x.dims();
    assert_eq!(
        width, d_in,
        "the input has {width} features, but the weight maps {d_in} features to {d_out}"
    );
    if let Some(bias) = bias {
        let [len] = bias.dims();
        assert_eq!(
            len, d_out,
            "the bias has {len} elements, but the weight maps {d_in} features to {d_out}"
        );
    }
}

#[cfg(feature = "flex")]
pub(crate) mod fast {
    use burn::tensor::Tensor;

    use crate::cpu::matmul::{self, GemmOptions, MatMut, MatRef, MatvecOptions};
    use crate::cpu::reduce::add_column_sums;
    use crate::fused::{BackwardContext, Buffer, Op, apply};
    use crate::{MATVEC_MAX_SEQ, Precision};

    /// Memory layout of the weight.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum WeightLayout {
        /// `[d_in, d_out]`.
        InOut,
        /// `[d_out, d_in]`.
        OutIn,
    }

    /// Shape and arithmetic of a linear layer.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct LinearOp {
        pub(crate) rows: usize,
        pub(crate) d_in: usize,
        pub(crate) d_out: usize,
        pub(crate) layout: WeightLayout,
        /// Whether to use the matrix-vector kernel, which is faster when reading the weights
        /// dominates (short sequences).
        pub(crate) use_matvec: bool,
        pub(crate) precision: Precision,
    }

    pub(super) fn linear(
        precision: Precision,
        x: Tensor<3>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        layout: WeightLayout,
    ) -> Tensor<3> {
        let [batch, seq, d_in] = x.dims();
        let d_out = match layout {
            WeightLayout::InOut => weight.dims()[1],
            WeightLayout::OutIn => weight.dims()[0],
        };
        let op = LinearOp {
            rows: batch * seq,
            d_in,
            d_out,
            layout,
            use_matvec: seq <= MATVEC_MAX_SEQ,
            precision,
        };
        let shape = [batch, seq, d_out];
        match bias {
            Some(bias) => apply(op, [x.into(), weight.into(), bias.into()], shape),
            None => apply(op, [x.into(), weight.into()], shape),
        }
    }

    impl LinearOp {
        fn gemm_options<'a>(&self) -> GemmOptions<'a> {
            GemmOptions {
                precision: self.precision,
                ..GemmOptions::default()
            }
        }

        /// A view of the weight as `d_in` by `d_out`, regardless of its layout.
        fn weight<'a>(&self, weight: &'a [f32]) -> MatRef<'a> {
            match self.layout {
                WeightLayout::InOut => MatRef::row_major(weight, self.d_in, self.d_out),
                WeightLayout::OutIn => MatRef::row_major(weight, self.d_out, self.d_in).t(),
            }
        }

        /// `y = x W + bias` (empty `bias`: none).
        pub(crate) fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let x = MatRef::row_major(x, rows, d_in);
            let mut y = MatMut::new(y, rows, d_out, d_out);
            let bias = (!bias.is_empty()).then_some(bias);
            if self.use_matvec && self.precision == Precision::F32 {
                let options = MatvecOptions {
                    bias,
                    ..MatvecOptions::default()
                };
                return matmul::matvec(x, self.weight(weight), &mut y, &options);
            }
            let options = GemmOptions {
                bias,
                ..self.gemm_options()
            };
            matmul::gemm(x, self.weight(weight), &mut y, &options);
        }

        /// `y = x W + bias + low up` (empty `bias`: none), where the last product is in f32. Not for the
        /// matrix-vector kernel.
        pub(crate) fn forward_with_update(
            &self,
            x: &[f32],
            weight: &[f32],
            bias: &[f32],
            [low, up]: [MatRef<'_>; 2],
            y: &mut [f32],
        ) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let x = MatRef::row_major(x, rows, d_in);
            let mut y = MatMut::row_major(y, rows, d_out);
            let options = GemmOptions {
                bias: (!bias.is_empty()).then_some(bias),
                ..self.gemm_options()
            };
            matmul::gemm_with_update(x, self.weight(weight), (low, up), &mut y, &options);
        }

        /// `dx = dy W^T`.
        pub(crate) fn input_gradient(&self, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
            self.input_gradient_with_update(dy, weight, None, dx);
        }

        /// `dx = dy W^T`, plus a product in f32, if there is one.
        pub(crate) fn input_gradient_with_update(
            &self,
            dy: &[f32],
            weight: &[f32],
            update: Option<[MatRef<'_>; 2]>,
            dx: &mut [f32],
        ) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let dy = MatRef::row_major(dy, rows, d_out);
            let mut dx = MatMut::new(dx, rows, d_in, d_in);
            let (weight, options) = (self.weight(weight).t(), self.gemm_options());
            match update {
                Some([low, up]) => {
                    matmul::gemm_with_update(dy, weight, (low, up), &mut dx, &options);
                }
                None => matmul::gemm(dy, weight, &mut dx, &options),
            }
        }

        /// `dW = x^T dy`, or `dW += x^T dy` if `accumulate`.
        pub(crate) fn weight_gradient(
            &self,
            x: &[f32],
            dy: &[f32],
            dw: &mut [f32],
            accumulate: bool,
        ) {
            let Self {
                rows, d_in, d_out, ..
            } = *self;
            let (x, dy) = (
                MatRef::row_major(x, rows, d_in),
                MatRef::row_major(dy, rows, d_out),
            );
            let options = GemmOptions {
                accumulate,
                ..self.gemm_options()
            };
            match self.layout {
                WeightLayout::InOut => {
                    matmul::gemm(
                        x.t(),
                        dy,
                        &mut MatMut::new(dw, d_in, d_out, d_out),
                        &options,
                    );
                }
                WeightLayout::OutIn => {
                    matmul::gemm(dy.t(), x, &mut MatMut::new(dw, d_out, d_in, d_in), &options);
                }
            }
        }

        fn output(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Buffer {
            let mut y = Buffer::new(self.rows * self.d_out);
            self.forward(x, weight, bias, &mut y);
            y
        }

        fn gradients(
            &self,
            x: &[f32],
            weight: &[f32],
            dy: &[f32],
            needs_grad: [bool; 2],
        ) -> [Option<Buffer>; 2] {
            let dx = needs_grad[0].then(|| {
                let mut dx = Buffer::new(self.rows * self.d_in);
                self.input_gradient(dy, weight, &mut dx);
                dx
            });
            let dw = needs_grad[1].then(|| {
                let mut dw = Buffer::new(self.d_in * self.d_out);
                self.weight_gradient(x, dy, &mut dw, false);
                dw
            });
            [dx, dw]
        }
    }

    impl Op<2> for LinearOp {
        type Saved = ();
        const SAVES_INPUT: [bool; 2] = [true; 2];

        fn saves_inputs(&self, [needs_x, needs_w]: [bool; 2]) -> [bool; 2] {
            [needs_w, needs_x]
        }

        fn forward(&self, [x, weight]: [&[f32]; 2], _needs_grad: [bool; 2]) -> (Buffer, ()) {
            (self.output(x, weight, &[]), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 2>) -> [Option<Buffer>; 2] {
            let [x, weight] = ctx.inputs;
            self.gradients(x, weight, ctx.grad, ctx.needs_grad)
        }
    }

    impl Op<3> for LinearOp {
        type Saved = ();
        const SAVES_INPUT: [bool; 3] = [true, true, false];

        fn saves_inputs(&self, [needs_x, needs_w, _]: [bool; 3]) -> [bool; 3] {
            [needs_w, needs_x, false]
        }

        fn forward(&self, [x, weight, bias]: [&[f32]; 3], _needs_grad: [bool; 3]) -> (Buffer, ()) {
            (self.output(x, weight, bias), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 3>) -> [Option<Buffer>; 3] {
            let ([x, weight, _], [need_x, need_w, need_b]) = (ctx.inputs, ctx.needs_grad);
            let [dx, dw] = self.gradients(x, weight, ctx.grad, [need_x, need_w]);
            let db = need_b.then(|| {
                let mut db = Buffer::zeros(self.d_out);
                add_column_sums(ctx.grad, &mut db);
                db
            });
            [dx, dw, db]
        }
    }
}
