//! The fast implementation: base product and update in one operation.

use std::sync::OnceLock;

use burn::backend::Flex;
use burn::tensor::Tensor;

use super::{LinearWeight, RowUpdate};
use crate::cpu::dropout as dropout_kernel;
use crate::cpu::elementwise::{add_scaled, scale};
use crate::cpu::matmul::{GemmOptions, MatMut, MatRef, gemm, transposed_product};
use crate::cpu::par::for_each;
use crate::cpu::reduce::add_column_sums;
use crate::fused::{BackwardContext, Buffer, Op, apply, from_buffer, into_contiguous, values};
use crate::linear::fast::{LinearOp, WeightLayout};
use crate::{DropoutMask, LowRankUpdate, MATVEC_MAX_SEQ, Precision, QuantizedMatrix};

/// The update, without its matrices.
#[derive(Clone, Debug)]
struct Update {
    rows: usize,
    d_in: usize,
    d_out: usize,
    rank: usize,
    scale: f32,
    dropout: Option<DropoutMask>,
    use_matvec: bool,
    has_bias: bool,
}

/// A linear layer and its update. The inputs are `x`, the weight, the bias (unused if there is none), `A` and `B`.
#[derive(Clone, Debug)]
struct FloatLora {
    linear: LinearOp,
    update: Update,
}

/// The same with a quantized weight. The inputs are `x`, the bias, `A` and `B`.
#[derive(Clone, Debug)]
struct QuantizedLora {
    weight: QuantizedMatrix,
    update: Update,
}

pub(super) fn linear_lora(
    precision: Precision,
    x: Tensor<3>,
    weight: LinearWeight,
    bias: Option<Tensor<1>>,
    update: LowRankUpdate,
) -> Tensor<3> {
    let ([batch, seq, d_in], [_, d_out]) = (x.dims(), weight.shape());
    let LowRankUpdate { a, b, .. } = update;
    let use_matvec = seq <= MATVEC_MAX_SEQ;
    let parts = Update {
        rows: batch * seq,
        d_in,
        d_out,
        rank: a.dims()[1],
        scale: update.scale,
        dropout: update.dropout.filter(|mask| mask.rate > 0.0),
        use_matvec,
        has_bias: bias.is_some(),
    };
    let shape = [batch, seq, d_out];
    let no_bias = || Tensor::zeros([1], &x.device().without_autodiff());
    let bias = bias.unwrap_or_else(no_bias);
    match weight {
        LinearWeight::Matrix(weight) => {
            let linear = LinearOp {
                rows: parts.rows,
                d_in,
                d_out,
                layout: WeightLayout::InOut,
                use_matvec,
                precision,
            };
            let op = FloatLora {
                linear,
                update: parts,
            };
            let inputs = [x.into(), weight.into(), bias.into(), a.into(), b.into()];
            apply(op, inputs, shape)
        }
        LinearWeight::Quantized(weight) => {
            let op = QuantizedLora {
                weight,
                update: parts,
            };
            apply(op, [x.into(), bias.into(), a.into(), b.into()], shape)
        }
    }
}

/// Maximum number of rows of an update in one task.
const ROWS_PER_TASK: usize = 4;

/// See [`add_row_updates`](super::add_row_updates()). Each update runs as in [`linear_lora`], on its rows alone.
pub(super) fn add_row_updates(y: Tensor<3>, x: Tensor<3>, updates: &[RowUpdate]) -> Tensor<3> {
    let ([_, seq, d_in], shape) = (x.dims(), y.dims());
    let d_out = shape[2];
    let (x, y) = (into_contiguous(x), into_contiguous(y));
    let matrices = updates.iter().map(|RowUpdate { update, .. }| {
        [&update.a, &update.b].map(|matrix| into_contiguous(matrix.clone()))
    });
    let matrices: Vec<_> = matrices.collect();
    let tasks = updates
        .iter()
        .zip(&matrices)
        .flat_map(|(update, matrices)| {
            let rows = update.rows.chunks(ROWS_PER_TASK);
            rows.map(move |rows| (rows, &update.update, matrices))
        });
    let tasks: Vec<_> = tasks.collect();
    let sums: Vec<OnceLock<Buffer>> = tasks.iter().map(|_| OnceLock::new()).collect();
    let ranks = tasks.iter().map(|(_, update, _)| update.a.dims()[1]);
    let cost = ranks.max().unwrap_or(0) * (d_in + d_out) * seq * ROWS_PER_TASK;
    // Each task runs its small products on one thread.
    for_each(tasks.len(), cost, |task| {
        let (rows, update, [a, b]) = tasks[task];
        let update = Update {
            rows: rows.len() * seq,
            d_in,
            d_out,
            rank: update.a.dims()[1],
            scale: update.scale,
            dropout: None,
            use_matvec: seq <= MATVEC_MAX_SEQ,
            has_bias: false,
        };
        let x = gather(values(&x), rows, seq * d_in);
        let mut sum = gather(values(&y), rows, seq * d_out);
        update.forward(&x, values(a), values(b), &mut sum);
        let _ = sums[task].set(sum); // Each cell is set once.
    });
    let mut out = Buffer::new(values(&y).len());
    out.copy_from_slice(values(&y));
    let width = seq * d_out;
    for ((rows, ..), sums) in tasks.iter().zip(&sums) {
        let sums = sums.get().map_or(&[][..], |sums| &sums[..]);
        for (row, sum) in rows.iter().zip(sums.chunks_exact(width.max(1))) {
            out[row * width..][..width].copy_from_slice(sum);
        }
    }
    Tensor::from_primitive::<Flex>(from_buffer(out, shape))
}

/// The `rows` of `x`, of `len` values each.
fn gather(x: &[f32], rows: &[usize], len: usize) -> Buffer {
    let mut gathered = Buffer::new(rows.len() * len);
    for (row, out) in rows.iter().zip(gathered.chunks_exact_mut(len.max(1))) {
        out.copy_from_slice(&x[row * len..][..len]);
    }
    gathered
}

impl Update {
    /// The bias; empty if there is none.
    fn bias<'a>(&self, bias: &'a [f32]) -> &'a [f32] {
        if self.has_bias { bias } else { &[] }
    }

    /// A linear layer of `d_in` to `d_out` features with the rows of this one.
    fn product(&self, d_in: usize, d_out: usize) -> LinearOp {
        LinearOp {
            rows: self.rows,
            d_in,
            d_out,
            layout: WeightLayout::InOut,
            use_matvec: self.use_matvec,
            precision: Precision::F32,
        }
    }

    /// The input after dropout; `None` if it is `x` itself.
    fn dropped(&self, x: &[f32]) -> Option<Buffer> {
        let mask = self.dropout?;
        let mut y = Buffer::new(x.len());
        dropout_kernel::apply(mask.kernel(), mask.offset, x, &mut y);
        Some(y)
    }

    /// `scale * dropout(x) A`, `[rows, rank]`.
    fn low(&self, x: &[f32], a: &[f32]) -> Buffer {
        let dropped = self.dropped(x);
        let mut low = Buffer::new(self.rows * self.rank);
        let x = dropped.as_deref().unwrap_or(x);
        self.product(self.d_in, self.rank)
            .forward(x, a, &[], &mut low);
        scale(&mut low, self.scale);
        low
    }

    /// Adds the update to `y`. Returns `scale * dropout(x) A`, `[rows, rank]`.
    fn forward(&self, x: &[f32], a: &[f32], b: &[f32], y: &mut [f32]) -> Buffer {
        let Self {
            rows, rank, d_out, ..
        } = *self;
        let low = self.low(x, a);
        if self.use_matvec {
            let mut sum = Buffer::new(rows * d_out);
            self.product(rank, d_out).forward(&low, b, &[], &mut sum);
            add_scaled(y, 1.0, &sum);
        } else {
            self.add_product((&low, rank), MatRef::row_major(b, rank, d_out), y);
        }
        low
    }

    /// `y += x w` for `x` of `width` columns.
    fn add_product(&self, (x, width): (&[f32], usize), w: MatRef<'_>, y: &mut [f32]) {
        let options = GemmOptions {
            accumulate: true,
            ..GemmOptions::default()
        };
        let x = MatRef::row_major(x, self.rows, width);
        gemm(x, w, &mut MatMut::row_major(y, self.rows, w.cols), &options);
    }

    /// The gradients of `x`, `A` and `B` that are needed. `base` writes that of `x` through the base weight, and adds
    /// the product of both matrices to it, if they are given.
    fn backward(
        &self,
        [x, a, b, low, dy]: [&[f32]; 5],
        [needs_x, needs_a, needs_b]: [bool; 3],
        base: impl FnOnce(Option<[MatRef<'_>; 2]>, &mut [f32]),
    ) -> [Option<Buffer>; 3] {
        let Self {
            rows,
            d_in,
            d_out,
            rank,
            ..
        } = *self;
        let db = needs_b.then(|| {
            let mut db = Buffer::new(rank * d_out);
            transposed_product(rows, (low, rank), (dy, d_out), &mut db);
            db
        });
        if !needs_a && !needs_x {
            return [None, None, db];
        }
        let mut low_grad = Buffer::new(rows * rank);
        self.product(rank, d_out)
            .input_gradient(dy, b, &mut low_grad);
        scale(&mut low_grad, self.scale);
        let da = needs_a.then(|| self.gradient_of_a(x, &low_grad));
        let dx = needs_x.then(|| {
            let mut dx = Buffer::new(rows * d_in);
            if self.dropout.is_none() {
                let low_grad = MatRef::row_major(&low_grad, rows, rank);
                base(
                    Some([low_grad, MatRef::row_major(a, d_in, rank).t()]),
                    &mut dx,
                );
                return dx;
            }
            base(None, &mut dx);
            let mut sum = Buffer::new(rows * d_in);
            self.product(d_in, rank)
                .input_gradient(&low_grad, a, &mut sum);
            if let Some(sum) = self.dropped(&sum) {
                add_scaled(&mut dx, 1.0, &sum);
            }
            dx
        });
        [dx, da, db]
    }

    /// `dropout(x)^T low_grad`, `[d_in, rank]`.
    fn gradient_of_a(&self, x: &[f32], low_grad: &[f32]) -> Buffer {
        let Self {
            rows, d_in, rank, ..
        } = *self;
        let dropped = self.dropped(x);
        let x = dropped.as_deref().unwrap_or(x);
        let mut transposed = Buffer::new(rank * d_in);
        transposed_product(rows, (low_grad, rank), (x, d_in), &mut transposed);
        let mut da = Buffer::new(d_in * rank);
        for (i, row) in da.chunks_exact_mut(rank).enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                *value = transposed[j * d_in + i];
            }
        }
        da
    }
}

/// Which of `x`, the weight, the bias, `A` and `B` the backward pass reads.
pub(super) fn saved_inputs([needs_x, needs_w, _, needs_a, _]: [bool; 5]) -> [bool; 5] {
    [
        needs_w || needs_a,
        needs_x,
        false,
        needs_x,
        needs_x || needs_a,
    ]
}

fn bias_gradient(d_out: usize, dy: &[f32]) -> Buffer {
    let mut db = Buffer::zeros(d_out);
    add_column_sums(dy, &mut db);
    db
}

impl Op<5> for FloatLora {
    type Saved = Buffer;
    const SAVES_INPUT: [bool; 5] = [true, true, false, true, true];

    fn saves_inputs(&self, needs_grad: [bool; 5]) -> [bool; 5] {
        saved_inputs(needs_grad)
    }

    fn forward(
        &self,
        [x, weight, bias, a, b]: [&[f32]; 5],
        _needs_grad: [bool; 5],
    ) -> (Buffer, Buffer) {
        let (update, bias) = (&self.update, self.update.bias(bias));
        let mut y = Buffer::new(update.rows * update.d_out);
        if update.use_matvec {
            self.linear.forward(x, weight, bias, &mut y);
            let low = update.forward(x, a, b, &mut y);
            return (y, low);
        }
        let low = update.low(x, a);
        let matrices = [
            MatRef::row_major(&low, update.rows, update.rank),
            MatRef::row_major(b, update.rank, update.d_out),
        ];
        self.linear
            .forward_with_update(x, weight, bias, matrices, &mut y);
        (y, low)
    }

    fn backward(&self, ctx: BackwardContext<'_, Buffer, 5>) -> [Option<Buffer>; 5] {
        let ([x, weight, _, a, b], dy) = (ctx.inputs, ctx.grad);
        let [needs_x, needs_w, needs_bias, needs_a, needs_b] = ctx.needs_grad;
        let Update { d_in, d_out, .. } = self.update;
        let dw = needs_w.then(|| {
            let mut dw = Buffer::new(d_in * d_out);
            self.linear.weight_gradient(x, dy, &mut dw, false);
            dw
        });
        let inputs = [x, a, b, &ctx.saved[..], dy];
        let needs = [needs_x, needs_a, needs_b];
        let [dx, da, db] = self.update.backward(inputs, needs, |update, dx| {
            self.linear
                .input_gradient_with_update(dy, weight, update, dx);
        });
        let dbias = needs_bias.then(|| bias_gradient(d_out, dy));
        [dx, dw, dbias, da, db]
    }
}

impl Op<4> for QuantizedLora {
    type Saved = Buffer;
    const SAVES_INPUT: [bool; 4] = [true, false, true, true];

    fn saves_inputs(&self, needs_grad: [bool; 4]) -> [bool; 4] {
        let [needs_x, needs_bias, needs_a, needs_b] = needs_grad;
        let [x, _, bias, a, b] = saved_inputs([needs_x, false, needs_bias, needs_a, needs_b]);
        [x, bias, a, b]
    }

    fn forward(&self, [x, bias, a, b]: [&[f32]; 4], _needs_grad: [bool; 4]) -> (Buffer, Buffer) {
        let rows = self.update.rows;
        let mut y = Buffer::new(rows * self.update.d_out);
        let bias = self.update.has_bias.then_some(bias);
        self.weight.matmul(x, rows, bias, &mut y);
        let low = self.update.forward(x, a, b, &mut y);
        (y, low)
    }

    fn backward(&self, ctx: BackwardContext<'_, Buffer, 4>) -> [Option<Buffer>; 4] {
        let ([x, _, a, b], dy) = (ctx.inputs, ctx.grad);
        let [needs_x, needs_bias, needs_a, needs_b] = ctx.needs_grad;
        let Update { rows, d_out, .. } = self.update;
        let inputs = [x, a, b, &ctx.saved[..], dy];
        let needs = [needs_x, needs_a, needs_b];
        let [dx, da, db] = self.update.backward(inputs, needs, |update, dx| {
            self.weight.input_gradient(dy, rows, update, dx);
        });
        let dbias = needs_bias.then(|| bias_gradient(d_out, dy));
        [dx, dbias, da, db]
    }
}
