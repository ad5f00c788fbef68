//! Linear layers in f32 with what follows them: a bias, a residual sum and an activation are part of the
//! product's kernel, and the gradient of the bias of that of the weight.

pub(super) mod epilogue;
pub(super) mod rows;
pub(super) mod tiles;

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;

use self::epilogue::{Addends, Epilogue};
use super::activation::activation_gradient;
use super::apply::{BackwardContext, Input, Op, apply, is_gpu_f32};
use crate::{Activation, MATVEC_MAX_SEQ};

/// Whether the kernel for few rows is used: by the positions of a sequence, never by how many sequences share the
/// batch, so that the bits of a row do not depend on the other rows. Training uses tiles, which read less for large
/// batches.
pub(super) fn has_few_rows(seq: usize, needs_grad: bool) -> bool {
    seq <= MATVEC_MAX_SEQ && !needs_grad
}

/// Whether the kernels support these tensors: f32, and no empty dimension.
pub(crate) fn supports(x: &Tensor<3>, weight: &Tensor<2>) -> bool {
    let has_elements = x.dims().iter().chain(&weight.dims()).all(|size| *size > 0);
    has_elements && is_gpu_f32(x) && is_gpu_f32(weight)
}

/// `activation(x W + bias + residual)`; `weight` is `[d_in, d_out]`, or `[d_out, d_in]` if `is_table`.
pub(crate) fn linear(
    x: Tensor<3>,
    weight: Tensor<2>,
    is_table: bool,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<3>>,
    activation: Option<Activation>,
) -> Tensor<3> {
    let ([batch, seq, d_in], weight_shape) = (x.dims(), weight.dims());
    let d_out = weight_shape[usize::from(!is_table)];
    let op = Linear {
        batch,
        seq,
        d_in,
        d_out,
        is_table,
        has_bias: bias.is_some(),
        activation,
    };
    let (x, weight): (Input, Input) = (x.into(), weight.into());
    match (bias, residual) {
        (None, None) => apply(op, [x, weight]),
        (Some(bias), None) => apply(op, [x, weight, bias.into()]),
        (None, Some(addend)) => apply(op, [x, weight, addend.into()]),
        (Some(bias), Some(addend)) => apply(op, [x, weight, bias.into(), addend.into()]),
    }
}

#[derive(Clone, Copy, Debug)]
struct Linear {
    batch: usize,
    seq: usize,
    d_in: usize,
    d_out: usize,
    is_table: bool,
    has_bias: bool,
    activation: Option<Activation>,
}

/// The input of the activation function.
type Saved = Option<CubeTensor>;

impl Linear {
    fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// The output, and the input of the activation function if the backward pass needs it. `rest` are bias and
    /// addend, if there are any.
    fn run(
        &self,
        x: &CubeTensor,
        weight: &CubeTensor,
        rest: &[&CubeTensor],
        needs_grad: bool,
    ) -> (CubeTensor, Saved) {
        let (epilogue, addends) = Epilogue::of(rest, self.has_bias, self.activation);
        let shape = [self.batch, self.seq, self.d_out];
        if has_few_rows(self.seq, needs_grad) {
            let product = rows::MatrixProduct {
                rows: self.rows(),
                d_in: self.d_in,
                d_out: self.d_out,
                is_transposed: self.is_table,
            };
            return (product.run([x, weight], addends, epilogue, &shape), None);
        }
        let product = tiles::MatrixProduct {
            m: self.rows(),
            n: self.d_out,
            k: self.d_in,
            is_a_transposed: false,
            is_b_transposed: self.is_table,
        };
        let keeps_input = self.activation.is_some() && needs_grad;
        product.run([x, weight], addends, epilogue, keeps_input, &shape)
    }

    fn gradients<const N: usize>(
        &self,
        ctx: &BackwardContext<Saved, N>,
    ) -> [Option<CubeTensor>; N] {
        let d_sum = match (self.activation, &ctx.saved) {
            (Some(f), Some(input)) => activation_gradient(f, input, &ctx.grad),
            _ => ctx.grad.clone(),
        };
        let needs = ctx.needs_grad;
        let needs_bias = self.has_bias && needs[2];
        let mut gradients = [const { None }; N];
        if needs[0] {
            gradients[0] = Some(self.input_gradient(&d_sum, ctx.input(1)));
        }
        if needs[1] || needs_bias {
            let [weight, bias] = self.parameter_gradients(ctx.input(0), &d_sum, needs_bias);
            gradients[1] = weight.filter(|_| needs[1]);
            if needs_bias {
                gradients[2] = bias;
            }
        }
        if N > 2 + usize::from(self.has_bias) && needs[N - 1] {
            gradients[N - 1] = Some(d_sum);
        }
        gradients
    }

    fn input_gradient(&self, d_sum: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
        input_gradient(
            [self.batch, self.seq, self.d_in, self.d_out],
            d_sum,
            weight,
            self.is_table,
        )
    }

    fn parameter_gradients(
        &self,
        x: &CubeTensor,
        d_sum: &CubeTensor,
        needs_bias: bool,
    ) -> [Option<CubeTensor>; 2] {
        let (factors, [m, n], bias) = if self.is_table {
            ([d_sum, x], [self.d_out, self.d_in], tiles::Summed::A)
        } else {
            ([x, d_sum], [self.d_in, self.d_out], tiles::Summed::B)
        };
        let product = tiles::MatrixProduct {
            m,
            n,
            k: self.rows(),
            is_a_transposed: true,
            is_b_transposed: false,
        };
        let (weight, sums) = product.run_with_sums(factors, needs_bias.then_some(bias), &[m, n]);
        [Some(weight), sums]
    }
}

/// `dy W^T` for `W` of shape `[d_in, d_out]`, or `[d_out, d_in]` if `is_table`.
pub(super) fn input_gradient(
    [batch, seq, d_in, d_out]: [usize; 4],
    dy: &CubeTensor,
    weight: &CubeTensor,
    is_table: bool,
) -> CubeTensor {
    let product = tiles::MatrixProduct {
        m: batch * seq,
        n: d_in,
        k: d_out,
        is_a_transposed: false,
        is_b_transposed: !is_table,
    };
    let (dx, _) = product.run_with_sums([dy, weight], None, &[batch, seq, d_in]);
    dx
}

/// `activation(x table^T + bias + addend)` for many rows, and what the activation was applied to, if
/// `keeps_input`.
pub(super) fn multiply_table(
    [x, table]: [&CubeTensor; 2],
    addends: Addends<'_>,
    epilogue: Epilogue,
    keeps_input: bool,
    shape: [usize; 3],
) -> (CubeTensor, Option<CubeTensor>) {
    let [batch, seq, d_out] = shape;
    let rows = batch * seq;
    let product = tiles::MatrixProduct {
        m: rows,
        n: d_out,
        k: super::launch::len(x) / rows,
        is_a_transposed: false,
        is_b_transposed: true,
    };
    product.run([x, table], addends, epilogue, keeps_input, &shape)
}

macro_rules! linear_op {
    ($count:literal, $saves:expr, [$x:ident, $weight:ident $(, $rest:ident)*]) => {
        impl Op<$count> for Linear {
            type Saved = Saved;
            const SAVES_INPUT: [bool; $count] = $saves;

            fn forward(
                &self,
                [$x, $weight $(, $rest)*]: [&CubeTensor; $count],
                needs_grad: [bool; $count],
            ) -> (CubeTensor, Saved) {
                self.run($x, $weight, &[$($rest),*], needs_grad.contains(&true))
            }

            fn backward(&self, ctx: BackwardContext<Saved, $count>) -> [Option<CubeTensor>; $count] {
                self.gradients(&ctx)
            }
        }
    };
}

linear_op!(2, [true, true], [x, weight]);
linear_op!(3, [true, true, false], [x, weight, bias_or_addend]);
linear_op!(4, [true, true, false, false], [x, weight, bias, addend]);
