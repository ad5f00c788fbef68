//! The fast implementation.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::rows::{Chunk, Rows};
use super::{OutputLayer, OutputWeight, loss_chunk_rows};
use crate::cpu::cross_entropy::{self as kernel, RowLosses, Task};
use crate::cpu::elementwise::scale;
use crate::cpu::reduce::add_column_sums;
use crate::fused::{BackwardContext, Buffer, Op, apply};
use crate::linear::fast::{LinearOp, WeightLayout};
use crate::{IGNORE, Precision, QuantizedMatrix};

/// Gradients of hidden states, weight and bias for an output gradient of 1; empty where they are not needed.
pub(super) type Gradients = [Buffer; 3];

/// The loss of an output layer, with the tensors that are its inputs besides the hidden states.
#[allow(clippy::large_enum_variant)] // It exists for a moment, once per call.
pub(super) enum LayerLoss {
    Float(FloatLoss, Tensor<2>, Option<Tensor<1>>),
    Quantized(QuantizedLoss, Option<Tensor<1>>),
}

/// Factors on the gradients of rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum RowWeights<'a> {
    /// All are 1.
    Ones,
    /// One for each sequence of `seq` rows.
    PerSequence { weights: &'a [f32], seq: usize },
}

impl RowWeights<'_> {
    /// The factor of the row at `position` among all rows.
    fn at(self, position: usize) -> Option<f32> {
        match self {
            Self::Ones => None,
            Self::PerSequence { weights, seq } => Some(weights[position / seq]),
        }
    }
}

/// What does not depend on the representation of the weight.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    d_in: usize,
    d_out: usize,
    targets: Arc<Vec<u32>>,
    soft_cap: Option<f32>,
}

/// The loss with a float weight, which is an input.
#[derive(Clone, Debug)]
pub(super) struct FloatLoss {
    pub(super) loss: Loss,
    layout: WeightLayout,
    precision: Precision,
}

/// The loss with a quantized weight, which has no gradient.
#[derive(Clone, Debug)]
pub(super) struct QuantizedLoss {
    pub(super) loss: Loss,
    weight: QuantizedMatrix,
}

/// A weight of either representation.
pub(super) enum Projection<'a> {
    /// Shape and arithmetic for one row, and the weight.
    Float(LinearOp, &'a [f32]),
    Quantized(&'a QuantizedMatrix),
}

pub(super) fn cross_entropy_sum(
    hidden: Tensor<3>,
    layer: OutputLayer,
    targets: &[u32],
) -> Tensor<1> {
    match LayerLoss::new(layer, targets) {
        LayerLoss::Float(op, weight, None) => apply(op, [hidden.into(), weight.into()], [1]),
        LayerLoss::Float(op, weight, Some(bias)) => {
            apply(op, [hidden.into(), weight.into(), bias.into()], [1])
        }
        LayerLoss::Quantized(op, None) => apply(op, [hidden.into()], [1]),
        LayerLoss::Quantized(op, Some(bias)) => apply(op, [hidden.into(), bias.into()], [1]),
    }
}

impl LayerLoss {
    pub(super) fn new(layer: OutputLayer, targets: &[u32]) -> Self {
        let [d_in, d_out] = layer.weight.shape();
        let loss = Loss {
            d_in,
            d_out,
            targets: Arc::new(targets.to_vec()),
            soft_cap: layer.soft_cap.map(|cap| cap as f32),
        };
        let (weight, layout) = match layer.weight {
            OutputWeight::Matrix(weight) => (weight, WeightLayout::InOut),
            OutputWeight::Table(table) => (table, WeightLayout::OutIn),
            OutputWeight::Quantized(weight) => {
                return Self::Quantized(QuantizedLoss { loss, weight }, layer.bias);
            }
        };
        let op = FloatLoss {
            loss,
            layout,
            precision: layer.precision,
        };
        Self::Float(op, weight, layer.bias)
    }
}

impl Projection<'_> {
    /// The logits of `x`.
    fn forward(&self, x: &[f32], rows: usize, bias: &[f32], y: &mut [f32]) {
        match self {
            Self::Float(linear, weight) => LinearOp { rows, ..*linear }.forward(x, weight, bias, y),
            Self::Quantized(weight) => {
                weight.matmul(x, rows, (!bias.is_empty()).then_some(bias), y);
            }
        }
    }

    fn input_gradient(&self, dy: &[f32], rows: usize, dx: &mut [f32]) {
        match self {
            Self::Float(linear, weight) => {
                LinearOp { rows, ..*linear }.input_gradient(dy, weight, dx);
            }
            Self::Quantized(weight) => weight.input_gradient(dy, rows, None, dx),
        }
    }

    fn weight_gradient(&self, x: &[f32], dy: &[f32], rows: usize, dw: &mut [f32], add: bool) {
        if let Self::Float(linear, _) = self {
            LinearOp { rows, ..*linear }.weight_gradient(x, dy, dw, add);
        }
    }
}

impl Loss {
    /// The rows to process. Ignored rows are left out where that does not change the bits of a gradient.
    pub(super) fn rows(
        &self,
        projection: &Projection<'_>,
        [_, needs_w, needs_b]: [bool; 3],
    ) -> Rows {
        let rows = self.targets.len();
        let chunk_rows = loss_chunk_rows(self.d_out).min(rows.max(1));
        // In bf16, rows are summed in pairs; the bias gradient, in groups of a number of rows.
        let is_paired = matches!(projection, Projection::Float(linear, _) if linear.precision == Precision::Bf16);
        let keeps_all = needs_b || needs_w && is_paired;
        if keeps_all || !self.targets.contains(&IGNORE) {
            return Rows::all(rows, chunk_rows);
        }
        Rows::counted(&self.targets, chunk_rows)
    }

    /// The loss, and the gradients in `needs_grad`.
    fn run(
        &self,
        x: &[f32],
        projection: &Projection<'_>,
        bias: &[f32],
        needs_grad: [bool; 3],
    ) -> (Buffer, Gradients) {
        let rows = self.rows(projection, needs_grad);
        let inputs = (x, projection, bias);
        let (losses, grads) = self.run_rows(&rows, inputs, needs_grad, RowWeights::Ones);
        let sum = rows.sum(&losses);
        (Buffer::from_slice(&[sum as f32]), grads)
    }

    /// The losses of these rows, and the gradients in `needs_grad` of their sum with these weights.
    pub(super) fn run_rows(
        &self,
        rows: &Rows,
        (x, projection, bias): (&[f32], &Projection<'_>, &[f32]),
        needs_grad: [bool; 3],
        weights: RowWeights<'_>,
    ) -> (Buffer, Gradients) {
        let Self { d_in, d_out, .. } = *self;
        let max_chunk = rows.max_chunk();
        let mut logits = Buffer::new(max_chunk * d_out);
        let mut lse = Buffer::new(max_chunk);
        let mut losses = Buffer::new(rows.len());
        let [needs_x, needs_w, needs_b] = needs_grad;
        let len = |needed: bool, len: usize| if needed { len } else { 0 };
        let mut grads = [
            Buffer::new(len(needs_x, x.len())),
            Buffer::new(len(needs_w, d_in * d_out)),
            Buffer::zeros(len(needs_b, bias.len())),
        ];
        if rows.len() == 0 {
            grads[1].fill(0.0);
        }
        // Copies of the rows of a selection and of their gradients.
        let copied = len(rows.is_selection(), max_chunk * d_in);
        let (mut copy, mut dx_copy) = (Buffer::new(copied), Buffer::new(len(needs_x, copied)));
        if rows.is_selection() {
            grads[0].fill(0.0);
        }
        for chunk in &rows.chunks {
            let n = chunk.rows.len();
            let x = if rows.is_selection() {
                for (row, copy) in chunk.rows.clone().zip(copy.chunks_mut(d_in)) {
                    copy.copy_from_slice(&x[rows.position(row) * d_in..][..d_in]);
                }
                &copy[..n * d_in]
            } else {
                &x[chunk.rows.start * d_in..chunk.rows.end * d_in]
            };
            let logits = &mut logits[..n * d_out];
            projection.forward(x, n, bias, logits);
            let targets: Vec<u32> = chunk
                .rows
                .clone()
                .map(|row| self.targets[rows.position(row)])
                .collect();
            let task = Task {
                vocab: d_out,
                targets: &targets,
                soft_cap: self.soft_cap,
            };
            let row_losses = RowLosses {
                loss: &mut losses[chunk.rows.clone()],
                lse: &mut lse[..n],
            };
            if needs_grad == [false; 3] {
                kernel::forward(&task, logits, row_losses);
                continue;
            }
            kernel::forward_backward_in_place(&task, logits, 1.0, row_losses);
            for (row, logits) in chunk.rows.clone().zip(logits.chunks_mut(d_out)) {
                if let Some(weight) = weights.at(rows.position(row)) {
                    scale(logits, weight);
                }
            }
            let [dx, dw, db] = &mut grads;
            if needs_x && rows.is_selection() {
                projection.input_gradient(logits, n, &mut dx_copy[..n * d_in]);
                for (row, copy) in chunk.rows.clone().zip(dx_copy.chunks(d_in)) {
                    dx[rows.position(row) * d_in..][..d_in].copy_from_slice(copy);
                }
            } else if needs_x {
                let dx = &mut dx[chunk.rows.start * d_in..chunk.rows.end * d_in];
                projection.input_gradient(logits, n, dx);
            }
            if needs_w {
                self.add_weight_gradients(projection, chunk, (x, logits), dw);
            }
            if needs_b {
                add_column_sums(logits, db);
            }
        }
        (losses, grads)
    }

    /// Adds the products of a chunk's parts to the weight gradient.
    fn add_weight_gradients(
        &self,
        projection: &Projection<'_>,
        chunk: &Chunk,
        (x, dy): (&[f32], &[f32]),
        dw: &mut [f32],
    ) {
        for part in &chunk.parts {
            let [start, end] = [part.start, part.end].map(|row| row - chunk.rows.start);
            let x = &x[start * self.d_in..end * self.d_in];
            let dy = &dy[start * self.d_out..end * self.d_out];
            projection.weight_gradient(x, dy, part.len(), dw, part.start > 0);
        }
    }
}

/// Multiplies the gradients by the output gradient.
fn scaled(mut gradients: Gradients, grad: &[f32], needs_grad: [bool; 3]) -> [Option<Buffer>; 3] {
    for gradient in &mut gradients {
        scale(gradient, grad[0]);
    }
    let mut needs_grad = needs_grad.into_iter();
    gradients.map(|gradient| needs_grad.next().unwrap_or(false).then_some(gradient))
}

impl FloatLoss {
    fn run(&self, [x, weight, bias]: [&[f32]; 3], needs_grad: [bool; 3]) -> (Buffer, Gradients) {
        self.loss.run(x, &self.projection(weight), bias, needs_grad)
    }

    pub(super) fn projection<'a>(&self, weight: &'a [f32]) -> Projection<'a> {
        let linear = LinearOp {
            rows: 1,
            d_in: self.loss.d_in,
            d_out: self.loss.d_out,
            layout: self.layout,
            use_matvec: false,
            precision: self.precision,
        };
        Projection::Float(linear, weight)
    }
}

impl Op<2> for FloatLoss {
    type Saved = Gradients;
    const SAVES_INPUT: [bool; 2] = [false; 2];

    fn forward(&self, [x, w]: [&[f32]; 2], [needs_x, needs_w]: [bool; 2]) -> (Buffer, Gradients) {
        self.run([x, w, &[]], [needs_x, needs_w, false])
    }

    fn backward(&self, ctx: BackwardContext<'_, Gradients, 2>) -> [Option<Buffer>; 2] {
        let [needs_x, needs_w] = ctx.needs_grad;
        let [dx, dw, _] = scaled(ctx.saved, ctx.grad, [needs_x, needs_w, false]);
        [dx, dw]
    }
}

impl Op<3> for FloatLoss {
    type Saved = Gradients;
    const SAVES_INPUT: [bool; 3] = [false; 3];

    fn forward(&self, inputs: [&[f32]; 3], needs_grad: [bool; 3]) -> (Buffer, Gradients) {
        self.run(inputs, needs_grad)
    }

    fn backward(&self, ctx: BackwardContext<'_, Gradients, 3>) -> [Option<Buffer>; 3] {
        scaled(ctx.saved, ctx.grad, ctx.needs_grad)
    }
}

impl QuantizedLoss {
    pub(super) fn projection(&self) -> Projection<'_> {
        Projection::Quantized(&self.weight)
    }
}

impl Op<1> for QuantizedLoss {
    type Saved = Gradients;
    const SAVES_INPUT: [bool; 1] = [false];

    fn forward(&self, [x]: [&[f32]; 1], [needs_x]: [bool; 1]) -> (Buffer, Gradients) {
        self.loss
            .run(x, &self.projection(), &[], [needs_x, false, false])
    }

    fn backward(&self, ctx: BackwardContext<'_, Gradients, 1>) -> [Option<Buffer>; 1] {
        let [needs_x] = ctx.needs_grad;
        let [dx, ..] = scaled(ctx.saved, ctx.grad, [needs_x, false, false]);
        [dx]
    }
}

impl Op<2> for QuantizedLoss {
    type Saved = Gradients;
    const SAVES_INPUT: [bool; 2] = [false; 2];

    fn forward(
        &self,
        [x, bias]: [&[f32]; 2],
        [needs_x, needs_b]: [bool; 2],
    ) -> (Buffer, Gradients) {
        self.loss
            .run(x, &self.projection(), bias, [needs_x, false, needs_b])
    }

    fn backward(&self, ctx: BackwardContext<'_, Gradients, 2>) -> [Option<Buffer>; 2] {
        let [needs_x, needs_b] = ctx.needs_grad;
        let [dx, _, db] = scaled(ctx.saved, ctx.grad, [needs_x, false, needs_b]);
        [dx, db]
    }
}

/// The loss and the gradients of `x` and the weight, `[d_in, vocab]`, with these rows.
#[cfg(test)]
pub(super) fn loss_for_rows(
    rows: Rows,
    [x, weight]: [&[f32]; 2],
    targets: &[u32],
    [needs_x, needs_w]: [bool; 2],
) -> [Vec<f32>; 3] {
    let d_in = x.len() / targets.len();
    let d_out = weight.len() / d_in;
    let linear = LinearOp {
        rows: 1,
        d_in,
        d_out,
        layout: WeightLayout::InOut,
        use_matvec: false,
        precision: Precision::F32,
    };
    let loss = Loss {
        d_in,
        d_out,
        targets: Arc::new(targets.to_vec()),
        soft_cap: None,
    };
    let projection = Projection::Float(linear, weight);
    let needs_grad = [needs_x, needs_w, false];
    let inputs = (x, &projection, &[][..]);
    let (losses, [dx, dw, _]) = loss.run_rows(&rows, inputs, needs_grad, RowWeights::Ones);
    let sum = rows.sum(&losses) as f32;
    [vec![sum], dx.to_vec(), dw.to_vec()]
}
