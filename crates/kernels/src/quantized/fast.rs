use burn::tensor::Tensor;

use super::QuantizedMatrix;
use crate::cpu::reduce::add_column_sums;
use crate::fused::{BackwardContext, Buffer, Op, apply};

#[derive(Clone, Debug)]
struct QuantizedLinear {
    rows: usize,
    weight: QuantizedMatrix,
}

pub(super) fn linear(x: Tensor<3>, weight: &QuantizedMatrix, bias: Option<Tensor<1>>) -> Tensor<3> {
    let ([batch, seq, _], [_, d_out]) = (x.dims(), weight.shape());
    let op = QuantizedLinear {
        rows: batch * seq,
        weight: weight.clone(),
    };
    let shape = [batch, seq, d_out];
    match bias {
        Some(bias) => apply(op, [x.into(), bias.into()], shape),
        None => apply(op, [x.into()], shape),
    }
}

impl QuantizedLinear {
    fn output(&self, x: &[f32], bias: Option<&[f32]>) -> Buffer {
        let [_, d_out] = self.weight.shape();
        let mut y = Buffer::new(self.rows * d_out);
        self.weight.matmul(x, self.rows, bias, &mut y);
        y
    }

    fn input_gradient(&self, dy: &[f32]) -> Buffer {
        let [d_in, _] = self.weight.shape();
        let mut dx = Buffer::new(self.rows * d_in);
        self.weight.input_gradient(dy, self.rows, None, &mut dx);
        dx
    }
}

impl Op<1> for QuantizedLinear {
    type Saved = ();
    const SAVES_INPUT: [bool; 1] = [false];

    fn forward(&self, [x]: [&[f32]; 1], _needs_grad: [bool; 1]) -> (Buffer, ()) {
        (self.output(x, None), ())
    }

    fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
        ctx.needs_grad
            .map(|needs_x| needs_x.then(|| self.input_gradient(ctx.grad)))
    }
}

impl Op<2> for QuantizedLinear {
    type Saved = ();
    const SAVES_INPUT: [bool; 2] = [false; 2];

    fn forward(&self, [x, bias]: [&[f32]; 2], _needs_grad: [bool; 2]) -> (Buffer, ()) {
        (self.output(x, Some(bias)), ())
    }

    fn backward(&self, ctx: BackwardContext<'_, (), 2>) -> [Option<Buffer>; 2] {
        let [needs_x, needs_b] = ctx.needs_grad;
        let db = needs_b.then(|| {
            let mut db = Buffer::zeros(self.weight.shape()[1]);
            add_column_sums(ctx.grad, &mut db);
            db
        });
        [needs_x.then(|| self.input_gradient(ctx.grad)), db]
    }
}
