//! Output layer and softmax cross-entropy in chunks of rows: the logits of all rows are never stored. The
//! gradients are computed while a chunk's logits are at hand, which they replace.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::{BackwardContext, Op, apply, is_gpu_f32};
use super::launch::{buffer, empty, exclusive, len, part, per_cube, per_element, upload};
use super::linear::tiles::{MatrixProduct, Summed, Target};
use super::reduce::{ROW_UNITS, max_over_cube, sum_over_cube, total};
use crate::IGNORE;

/// Logits in memory at once, at most: 96 MB, since a buffer of some adapters holds 128 MB. Few in the tests of
/// this crate, which thus have several chunks.
const CHUNK_LOGITS: usize = if cfg!(test) { 1 << 16 } else { 24 << 20 };
/// Chunks have a multiple of this number of rows, so that each begins where adapters align buffers.
const ROW_ALIGNMENT: usize = 64;

/// Whether the kernels support a loss of `hidden`, where the weight has this shape.
pub(crate) fn supports(hidden: &Tensor<3>, shape: [usize; 2]) -> bool {
    let has_elements = hidden.dims().iter().chain(&shape).all(|size| *size > 0);
    has_elements && is_gpu_f32(hidden)
}

/// The sum over all rows whose target is not [`IGNORE`]. `weight` is `[d_in, vocab]`, or `[vocab, d_in]` if
/// `is_table`.
pub(crate) fn cross_entropy_sum(
    hidden: Tensor<3>,
    (weight, is_table): (Tensor<2>, bool),
    bias: Option<Tensor<1>>,
    soft_cap: Option<f64>,
    targets: &[u32],
) -> Tensor<1> {
    let shape = weight.dims();
    let op = OutputLoss {
        targets: Arc::new(targets.to_vec()),
        d_in: shape[usize::from(is_table)],
        vocab: shape[usize::from(!is_table)],
        is_table,
        soft_cap: soft_cap.map(|cap| cap as f32),
    };
    match bias {
        None => apply(op, [hidden.into(), weight.into()]),
        Some(bias) => apply(op, [hidden.into(), weight.into(), bias.into()]),
    }
}

#[derive(Clone, Debug)]
struct OutputLoss {
    targets: Arc<Vec<u32>>,
    d_in: usize,
    vocab: usize,
    /// Whether the weight is `[vocab, d_in]`.
    is_table: bool,
    soft_cap: Option<f32>,
}

/// Gradients of hidden states, weight and bias for an output gradient of 1, where they are needed.
type Gradients = [Option<CubeTensor>; 3];

impl OutputLoss {
    fn chunk_rows(&self) -> usize {
        let rows = CHUNK_LOGITS / self.vocab / ROW_ALIGNMENT * ROW_ALIGNMENT;
        rows.max(ROW_ALIGNMENT).min(self.targets.len())
    }

    fn run(
        &self,
        [x, weight]: [&CubeTensor; 2],
        bias: Option<&CubeTensor>,
        needs_grad: [bool; 3],
    ) -> (CubeTensor, Gradients) {
        let (rows, chunk_rows) = (self.targets.len(), self.chunk_rows());
        let targets = upload(x, &self.targets);
        let losses = empty(x, [rows]);
        let all_logits = empty(x, [chunk_rows, self.vocab]);
        let [needs_x, needs_w, needs_b] = needs_grad;
        let dx = needs_x.then(|| empty(x, x.meta.shape().clone()));
        let dw = (needs_w || needs_b).then(|| empty(x, weight.meta.shape().clone()));
        let db = needs_b.then(|| empty(x, [self.vocab]));
        for first in (0..rows).step_by(chunk_rows) {
            let count = chunk_rows.min(rows - first);
            let chunk = part(x, first * self.d_in, [count, self.d_in]);
            let logits = part(&all_logits, 0, [count, self.vocab]);
            let product = self.logits_product(count);
            product.run_into([&chunk, weight], bias, &Target::new(&logits));
            self.losses(
                [&logits, &targets, &losses],
                first,
                needs_grad.contains(&true),
            );
            if let Some(dx) = &dx {
                let dx = part(dx, first * self.d_in, [count, self.d_in]);
                let product = self.input_product(count);
                product.run_into([&logits, weight], None, &Target::new(&dx));
            }
            if let Some(dw) = &dw {
                let target = Target {
                    sums: db.as_ref(),
                    accumulates: first > 0,
                    ..Target::new(dw)
                };
                self.add_parameter_gradients([&chunk, &logits], count, &target);
            }
        }
        (total(&losses), [dx, dw.filter(|_| needs_w), db])
    }

    fn logits_product(&self, rows: usize) -> MatrixProduct {
        MatrixProduct {
            m: rows,
            n: self.vocab,
            k: self.d_in,
            is_a_transposed: false,
            is_b_transposed: self.is_table,
        }
    }

    fn input_product(&self, rows: usize) -> MatrixProduct {
        MatrixProduct {
            m: rows,
            n: self.d_in,
            k: self.vocab,
            is_a_transposed: false,
            is_b_transposed: !self.is_table,
        }
    }

    fn add_parameter_gradients(
        &self,
        [x, d_logits]: [&CubeTensor; 2],
        rows: usize,
        target: &Target<'_>,
    ) {
        let (factors, [m, n], summed) = if self.is_table {
            ([d_logits, x], [self.vocab, self.d_in], Summed::A)
        } else {
            ([x, d_logits], [self.d_in, self.vocab], Summed::B)
        };
        let product = MatrixProduct {
            m,
            n,
            k: rows,
            is_a_transposed: true,
            is_b_transposed: false,
        };
        let summed = target.sums.map(|_| summed);
        product.run_into(factors, None, &Target { summed, ..*target });
    }

    /// Writes the losses of the rows of a chunk, and replaces its logits by their gradients if they are needed.
    fn losses(
        &self,
        [logits, targets, losses]: [&CubeTensor; 3],
        first: usize,
        needs_gradient: bool,
    ) {
        let rows = logits.meta.shape()[0];
        if let Some(cubes) = per_cube(logits, rows) {
            losses_of_rows::launch(
                &logits.client,
                cubes,
                CubeDim::new_1d(ROW_UNITS),
                buffer(logits),
                buffer(targets),
                buffer(losses),
                first,
                rows,
                self.vocab,
                self.soft_cap.unwrap_or(1.0),
                self.soft_cap.is_some(),
                needs_gradient,
            );
        }
    }
}

/// `x` times the single element of `factor`.
fn scaled(x: CubeTensor, factor: &CubeTensor) -> CubeTensor {
    let x = exclusive(x);
    if let Some((cubes, units)) = per_element(&x, len(&x)) {
        scale::launch(&x.client, cubes, units, buffer(&x), buffer(factor));
    }
    x
}

impl Op<2> for OutputLoss {
    type Saved = Gradients;
    const SAVES_INPUT: [bool; 2] = [false; 2];

    fn forward(
        &self,
        inputs: [&CubeTensor; 2],
        [needs_x, needs_w]: [bool; 2],
    ) -> (CubeTensor, Gradients) {
        self.run(inputs, None, [needs_x, needs_w, false])
    }

    fn backward(&self, ctx: BackwardContext<Gradients, 2>) -> [Option<CubeTensor>; 2] {
        let [dx, dw, _] = ctx
            .saved
            .map(|gradient| gradient.map(|x| scaled(x, &ctx.grad)));
        [dx, dw]
    }
}

impl Op<3> for OutputLoss {
    type Saved = Gradients;
    const SAVES_INPUT: [bool; 3] = [false; 3];

    fn forward(
        &self,
        [x, weight, bias]: [&CubeTensor; 3],
        needs_grad: [bool; 3],
    ) -> (CubeTensor, Gradients) {
        self.run([x, weight], Some(bias), needs_grad)
    }

    fn backward(&self, ctx: BackwardContext<Gradients, 3>) -> [Option<CubeTensor>; 3] {
        ctx.saved
            .map(|gradient| gradient.map(|x| scaled(x, &ctx.grad)))
    }
}

#[cube(launch)]
fn scale(x: &mut [f32], factor: &[f32]) {
    let i = ABSOLUTE_POS;
    if i < x.len() {
        x[i] *= factor[0];
    }
}

/// One cube per row of a chunk, whose rows are those from `first_row` on among the targets.
#[cube(launch)]
fn losses_of_rows(
    logits: &mut [f32],
    targets: &[u32],
    losses: &mut [f32],
    first_row: usize,
    rows: usize,
    vocab: usize,
    cap: f32,
    #[comptime] has_cap: bool,
    #[comptime] needs_gradient: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (first, end) = (row * vocab, row * vocab + vocab);
    let begin = first + UNIT_POS as usize;
    let mut maximum = capped(logits[first], cap, has_cap);
    for i in range_stepped(begin, end, 64) {
        maximum = max(maximum, capped(logits[i], cap, has_cap));
    }
    let maximum = max_over_cube(maximum);
    let mut sum = 0.0f32;
    for i in range_stepped(begin, end, 64) {
        sum += (capped(logits[i], cap, has_cap) - maximum).exp();
    }
    let log_sum = maximum + sum_over_cube(sum).ln();
    let target = targets[first_row + row];
    let is_counted = target != comptime!(IGNORE).runtime();
    let hit = first + select(is_counted, target as usize, 0usize);
    if UNIT_POS == 0 {
        let loss = log_sum - capped(logits[hit], cap, has_cap);
        losses[first_row + row] = select(is_counted, loss, 0.0f32);
    }
    if comptime!(needs_gradient) {
        // The loss has been read.
        sync_cube();
        for i in range_stepped(begin, end, 64) {
            let logit = capped(logits[i], cap, has_cap);
            let mut gradient = (logit - log_sum).exp() - select(i == hit, 1.0f32, 0.0f32);
            if comptime!(has_cap) {
                let ratio = logit / cap;
                gradient *= 1.0f32 - ratio * ratio;
            }
            logits[i] = select(is_counted, gradient, 0.0f32);
        }
    }
}

/// `cap * tanh(x / cap)`, from an exponential that stays finite.
#[cube]
fn capped(x: f32, cap: f32, #[comptime] has_cap: bool) -> f32 {
    if comptime!(has_cap) {
        let twice = clamp(2.0f32 * x / cap, -30.0f32, 30.0f32);
        cap * (1.0f32 - 2.0f32 / (twice.exp() + 1.0f32))
    } else {
        x
    }
}
