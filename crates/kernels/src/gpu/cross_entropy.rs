//! Softmax cross-entropy of given logits: one cube per row, and one pass for the gradient.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::{BackwardContext, Op, apply};
use super::launch::{buffer, empty, empty_like, len, per_cube, per_element, upload};
use super::reduce::{ROW_UNITS, max_over_cube, sum_over_cube, total};
use crate::IGNORE;

#[derive(Clone, Debug)]
struct CrossEntropy {
    targets: Vec<u32>,
    vocab: usize,
}

/// Targets and log-sum-exp of each row.
type Saved = (CubeTensor, CubeTensor);

/// The sum over all rows of `[n, vocab]` whose target is not [`IGNORE`].
pub(crate) fn cross_entropy_sum(logits: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let op = CrossEntropy {
        targets: targets.to_vec(),
        vocab: logits.dims()[1],
    };
    apply(op, [logits.into()])
}

impl Op<1> for CrossEntropy {
    type Saved = Saved;
    const SAVES_INPUT: [bool; 1] = [true];

    fn forward(&self, [logits]: [&CubeTensor; 1], _: [bool; 1]) -> (CubeTensor, Saved) {
        let rows = self.targets.len();
        let targets = upload(logits, &self.targets);
        let (losses, lse) = (empty(logits, [rows]), empty(logits, [rows]));
        if let Some(cubes) = per_cube(logits, rows) {
            cross_entropy::launch(
                &logits.client,
                cubes,
                CubeDim::new_1d(ROW_UNITS),
                buffer(logits),
                buffer(&targets),
                buffer(&losses),
                buffer(&lse),
                self.vocab,
            );
        }
        (total(&losses), (targets, lse))
    }

    fn backward(&self, ctx: BackwardContext<Saved, 1>) -> [Option<CubeTensor>; 1] {
        let (logits, (targets, lse)) = (ctx.input(0), &ctx.saved);
        let gradient = empty_like(logits);
        if let Some((cubes, units)) = per_element(logits, len(logits)) {
            cross_entropy_backward::launch(
                &logits.client,
                cubes,
                units,
                buffer(logits),
                buffer(targets),
                buffer(lse),
                buffer(&ctx.grad),
                buffer(&gradient),
                self.vocab,
            );
        }
        [Some(gradient)]
    }
}

#[cube(launch)]
fn cross_entropy(
    logits: &[f32],
    targets: &[u32],
    losses: &mut [f32],
    lse: &mut [f32],
    vocab: usize,
) {
    let row = CUBE_POS;
    if row >= losses.len() {
        terminate!();
    }
    let (first, end) = (row * vocab, row * vocab + vocab);
    let begin = first + UNIT_POS as usize;
    let mut maximum = logits[first];
    for i in range_stepped(begin, end, 64) {
        maximum = max(maximum, logits[i]);
    }
    let maximum = max_over_cube(maximum);
    let mut sum = 0.0f32;
    for i in range_stepped(begin, end, 64) {
        sum += (logits[i] - maximum).exp();
    }
    let log_sum = maximum + sum_over_cube(sum).ln();
    if UNIT_POS == 0 {
        let target = targets[row];
        let is_counted = target != comptime!(IGNORE).runtime();
        let at = first + select(is_counted, target as usize, 0usize);
        losses[row] = select(is_counted, log_sum - logits[at], 0.0f32);
        lse[row] = log_sum;
    }
}

#[cube(launch)]
fn cross_entropy_backward(
    logits: &[f32],
    targets: &[u32],
    lse: &[f32],
    d_loss: &[f32],
    gradient: &mut [f32],
    vocab: usize,
) {
    let i = ABSOLUTE_POS;
    if i < gradient.len() {
        let (row, column) = (i / vocab, i % vocab);
        let target = targets[row];
        let hit = select(column as u32 == target, 1.0f32, 0.0f32);
        let difference = (logits[i] - lse[row]).exp() - hit;
        let is_counted = target != comptime!(IGNORE).runtime();
        gradient[i] = select(is_counted, difference * d_loss[0], 0.0f32);
    }
}
