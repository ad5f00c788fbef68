//! The fast implementation of the losses of single sequences.
//!
//! The weights of the sequences in the gradient are known only after their losses. So the forward pass makes no
//! gradient, and the backward pass computes the logits again, chunk by chunk.

use burn::tensor::Tensor;

use super::OutputLayer;
use super::fast::{FloatLoss, Gradients, LayerLoss, Loss, Projection, QuantizedLoss, RowWeights};
use crate::fused::{BackwardContext, Buffer, Op, apply};

const NO_BIAS: &[f32] = &[];

/// An operation on all rows, divided into sequences of `seq` rows.
#[derive(Clone, Debug)]
struct Sequences<L> {
    layer: L,
    batch: usize,
    seq: usize,
}

pub(super) fn cross_entropy_per_sequence(
    hidden: Tensor<3>,
    layer: OutputLayer,
    targets: &[u32],
) -> Tensor<1> {
    let [batch, seq, _] = hidden.dims();
    match LayerLoss::new(layer, targets) {
        LayerLoss::Float(layer, weight, bias) => {
            let op = Sequences { layer, batch, seq };
            match bias {
                Some(bias) => apply(op, [hidden.into(), weight.into(), bias.into()], [batch]),
                None => apply(op, [hidden.into(), weight.into()], [batch]),
            }
        }
        LayerLoss::Quantized(layer, bias) => {
            let op = Sequences { layer, batch, seq };
            match bias {
                Some(bias) => apply(op, [hidden.into(), bias.into()], [batch]),
                None => apply(op, [hidden.into()], [batch]),
            }
        }
    }
}

impl<L> Sequences<L> {
    /// The loss of each sequence.
    fn losses(&self, loss: &Loss, x: &[f32], projection: &Projection<'_>, bias: &[f32]) -> Buffer {
        let rows = loss.rows(projection, [false; 3]);
        let inputs = (x, projection, bias);
        let (losses, _) = loss.run_rows(&rows, inputs, [false; 3], RowWeights::Ones);
        let mut sums = vec![0.0; self.batch];
        for (row, loss) in losses.iter().enumerate() {
            sums[rows.position(row) / self.seq] += f64::from(*loss);
        }
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        Buffer::from_slice(&sums)
    }

    /// The gradients in `needs_grad`, where `weights` is the gradient of the losses.
    fn gradients(
        &self,
        loss: &Loss,
        inputs: (&[f32], &Projection<'_>, &[f32]),
        weights: &[f32],
        needs_grad: [bool; 3],
    ) -> [Option<Buffer>; 3] {
        let rows = loss.rows(inputs.1, needs_grad);
        let seq = self.seq;
        let weights = RowWeights::PerSequence { weights, seq };
        let (_, gradients): (_, Gradients) = loss.run_rows(&rows, inputs, needs_grad, weights);
        let mut needs_grad = needs_grad.into_iter();
        gradients.map(|gradient| needs_grad.next().unwrap_or(false).then_some(gradient))
    }
}

impl Op<2> for Sequences<FloatLoss> {
    type Saved = ();
    const SAVES_INPUT: [bool; 2] = [true; 2];

    fn forward(&self, [x, w]: [&[f32]; 2], _: [bool; 2]) -> (Buffer, ()) {
        let projection = self.layer.projection(w);
        (self.losses(&self.layer.loss, x, &projection, NO_BIAS), ())
    }

    fn backward(&self, ctx: BackwardContext<'_, (), 2>) -> [Option<Buffer>; 2] {
        let ([x, w], [needs_x, needs_w]) = (ctx.inputs, ctx.needs_grad);
        let projection = self.layer.projection(w);
        let (inputs, needs_grad) = ((x, &projection, NO_BIAS), [needs_x, needs_w, false]);
        let [dx, dw, _] = self.gradients(&self.layer.loss, inputs, ctx.grad, needs_grad);
        [dx, dw]
    }
}

impl Op<3> for Sequences<FloatLoss> {
    type Saved = ();
    const SAVES_INPUT: [bool; 3] = [true; 3];

    fn forward(&self, [x, w, bias]: [&[f32]; 3], _: [bool; 3]) -> (Buffer, ()) {
        let projection = self.layer.projection(w);
        (self.losses(&self.layer.loss, x, &projection, bias), ())
    }

    fn backward(&self, ctx: BackwardContext<'_, (), 3>) -> [Option<Buffer>; 3] {
        let [x, w, bias] = ctx.inputs;
        let inputs = (x, &self.layer.projection(w), bias);
        self.gradients(&self.layer.loss, inputs, ctx.grad, ctx.needs_grad)
    }
}

impl Op<1> for Sequences<QuantizedLoss> {
    type Saved = ();
    const SAVES_INPUT: [bool; 1] = [true];

    fn forward(&self, [x]: [&[f32]; 1], _: [bool; 1]) -> (Buffer, ()) {
        let projection = self.layer.projection();
        (self.losses(&self.layer.loss, x, &projection, NO_BIAS), ())
    }

    fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
        let ([x], [needs_x]) = (ctx.inputs, ctx.needs_grad);
        let (inputs, needs_grad) = (
            (x, &self.layer.projection(), NO_BIAS),
            [needs_x, false, false],
        );
        let [dx, ..] = self.gradients(&self.layer.loss, inputs, ctx.grad, needs_grad);
        [dx]
    }
}

impl Op<2> for Sequences<QuantizedLoss> {
    type Saved = ();
    const SAVES_INPUT: [bool; 2] = [true; 2];

    fn forward(&self, [x, bias]: [&[f32]; 2], _: [bool; 2]) -> (Buffer, ()) {
        let projection = self.layer.projection();
        (self.losses(&self.layer.loss, x, &projection, bias), ())
    }

    fn backward(&self, ctx: BackwardContext<'_, (), 2>) -> [Option<Buffer>; 2] {
        let ([x, bias], [needs_x, needs_b]) = (ctx.inputs, ctx.needs_grad);
        let (inputs, needs_grad) = (
            (x, &self.layer.projection(), bias),
            [needs_x, false, needs_b],
        );
        let [dx, _, db] = self.gradients(&self.layer.loss, inputs, ctx.grad, needs_grad);
        [dx, db]
    }
}
