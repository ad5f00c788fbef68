//! Products with weights of 8 or 4 bits, which stay quantized on the device.

mod kernels;
mod packed;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::Cube;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::CubeDim;

pub(crate) use self::packed::DeviceCopies;
use self::packed::Packed;
use super::activation::activation_gradient;
use super::apply::{BackwardContext, Input, Op, apply, is_gpu_f32, primitive};
use super::launch::{buffer, empty, len, per_cube, per_element};
use super::linear::epilogue::{Addends, Epilogue};
use super::linear::{has_few_rows, input_gradient, multiply_table, rows};
use crate::Activation;
use crate::cpu::matmul::quant::QuantMatrix;

/// Whether the kernels support an input and a weight of this shape.
pub(crate) fn supports(x: &Tensor<3>, shape: [usize; 2]) -> bool {
    let has_elements = x.dims().iter().chain(&shape).all(|size| *size > 0);
    has_elements && is_gpu_f32(x)
}

/// `activation(x W + bias + residual)`. In products of few rows the integers are read directly; for others, the
/// weight is expanded on the device first.
pub(crate) fn linear(
    x: Tensor<3>,
    weight: &QuantizedWeight<'_>,
    bias: Option<Tensor<1>>,
    residual: Option<Tensor<3>>,
    activation: Option<Activation>,
) -> Tensor<3> {
    let [batch, seq, _] = x.dims();
    let x: Input = x.into();
    let op = Linear {
        batch,
        seq,
        weight: weight.on_gpu(x.primitive()),
        has_bias: bias.is_some(),
        activation,
    };
    match (bias, residual) {
        (None, None) => apply(op, [x]),
        (Some(bias), None) => apply(op, [x, bias.into()]),
        (None, Some(addend)) => apply(op, [x, addend.into()]),
        (Some(bias), Some(addend)) => apply(op, [x, bias.into(), addend.into()]),
    }
}

/// The dequantized values on the device of `like`, `[d_out, d_in]`.
pub(crate) fn table<const D: usize>(weight: &QuantizedWeight<'_>, like: &Tensor<D>) -> Tensor<2> {
    let like: Input = like.clone().into();
    Tensor::from_primitive::<Cube>(weight.on_gpu(like.primitive()).expand())
}

/// The columns `ids` of a table: `[batch, seq]` to `[batch, seq, d_in]`.
pub(crate) fn embed(table: &QuantizedWeight<'_>, ids: Tensor<2, Int>) -> Tensor<3> {
    let [batch, seq] = ids.dims();
    let ids = ids.cast(DType::I32).try_into_primitive::<Cube>();
    let ids = into_contiguous(ids.unwrap_or_else(|e| unreachable!("the ids are on a GPU: {e:?}")));
    let packed = table.on_gpu(&ids);
    let out = empty(&ids, [batch, seq, packed.d_in]);
    if let Some((cubes, units)) = per_element(&ids, len(&out)) {
        let [words, factors, ids_arg, out_arg] =
            [&packed.words, &packed.factors, &ids, &out].map(buffer);
        let (d_in, layout) = (packed.d_in, packed.layout);
        kernels::gather::launch(
            &ids.client,
            cubes,
            units,
            words,
            factors,
            ids_arg,
            out_arg,
            d_in,
            layout,
        );
    }
    Tensor::from_primitive::<Cube>(out)
}

/// A quantized weight, and where its copies on devices are kept.
pub(crate) struct QuantizedWeight<'a> {
    pub(crate) matrix: &'a QuantMatrix,
    pub(crate) copies: &'a DeviceCopies,
}

impl QuantizedWeight<'_> {
    fn on_gpu(&self, like: &CubeTensor) -> Packed {
        self.copies.get(self.matrix, like)
    }
}

#[derive(Clone, Debug)]
struct Linear {
    batch: usize,
    seq: usize,
    weight: Packed,
    has_bias: bool,
    activation: Option<Activation>,
}

/// The input of the activation function.
type Saved = Option<CubeTensor>;

impl Packed {
    /// The dequantized values, `[d_out, d_in]`.
    fn expand(&self) -> CubeTensor {
        let table = empty(&self.words, [self.d_out, self.d_in]);
        if let Some((cubes, units)) = per_element(&table, len(&table)) {
            let [words, factors, table_arg] = [&self.words, &self.factors, &table].map(buffer);
            let client = &table.client;
            kernels::dequantize::launch(
                client,
                cubes,
                units,
                words,
                factors,
                table_arg,
                self.d_in,
                self.layout,
            );
        }
        table
    }
}

impl Linear {
    fn shape(&self) -> [usize; 3] {
        [self.batch, self.seq, self.weight.d_out]
    }

    fn run(&self, x: &CubeTensor, rest: &[&CubeTensor], needs_grad: bool) -> (CubeTensor, Saved) {
        let (epilogue, addends) = Epilogue::of(rest, self.has_bias, self.activation);
        if has_few_rows(self.seq, needs_grad) {
            return (self.multiply_rows(x, addends, epilogue), None);
        }
        let table = self.weight.expand();
        let keeps_input = self.activation.is_some() && needs_grad;
        multiply_table([x, &table], addends, epilogue, keeps_input, self.shape())
    }

    fn multiply_rows(
        &self,
        x: &CubeTensor,
        [bias, addend]: Addends<'_>,
        epilogue: Epilogue,
    ) -> CubeTensor {
        let (weight, rows) = (&self.weight, self.batch * self.seq);
        let y = empty(x, self.shape());
        if let Some(cubes) = per_cube(x, rows.div_ceil(rows::ROWS) * weight.d_out.div_ceil(8)) {
            kernels::multiply_blocks::launch(
                &x.client,
                cubes,
                CubeDim::new_1d(rows::UNITS),
                buffer(x),
                buffer(&weight.words),
                buffer(&weight.factors),
                buffer(bias.unwrap_or(x)),
                buffer(addend.unwrap_or(x)),
                buffer(&y),
                rows,
                weight.d_in,
                weight.d_out,
                rows == 1,
                weight.layout,
                epilogue,
            );
        }
        y
    }

    fn gradients<const N: usize>(
        &self,
        ctx: &BackwardContext<Saved, N>,
    ) -> [Option<CubeTensor>; N] {
        let d_sum = match (self.activation, &ctx.saved) {
            (Some(f), Some(input)) => activation_gradient(f, input, &ctx.grad),
            _ => ctx.grad.clone(),
        };
        let mut gradients = [const { None }; N];
        if ctx.needs_grad[0] {
            let [batch, seq, d_out] = self.shape();
            let table = self.weight.expand();
            let sizes = [batch, seq, self.weight.d_in, d_out];
            gradients[0] = Some(input_gradient(sizes, &d_sum, &table, true));
        }
        if self.has_bias && ctx.needs_grad[1] {
            gradients[1] = Some(column_sums(&d_sum));
        }
        if N > 1 + usize::from(self.has_bias) && ctx.needs_grad[N - 1] {
            gradients[N - 1] = Some(d_sum);
        }
        gradients
    }
}

/// The sums over all rows of `[batch, seq, d]`.
fn column_sums(x: &CubeTensor) -> CubeTensor {
    let x = Tensor::<3>::from_primitive::<Cube>(x.clone());
    let [batch, seq, d] = x.dims();
    primitive(x.reshape([batch * seq, d]).sum_dim(0).reshape([d]))
}

macro_rules! linear_op {
    ($count:literal, [$x:ident $(, $rest:ident)*]) => {
        impl Op<$count> for Linear {
            type Saved = Saved;
            const SAVES_INPUT: [bool; $count] = [false; $count];

            fn forward(
                &self,
                [$x $(, $rest)*]: [&CubeTensor; $count],
                needs_grad: [bool; $count],
            ) -> (CubeTensor, Saved) {
                self.run($x, &[$($rest),*], needs_grad.contains(&true))
            }

            fn backward(&self, ctx: BackwardContext<Saved, $count>) -> [Option<CubeTensor>; $count] {
                self.gradients(&ctx)
            }
        }
    };
}

linear_op!(1, [x]);
linear_op!(2, [x, bias_or_addend]);
linear_op!(3, [x, bias, addend]);
