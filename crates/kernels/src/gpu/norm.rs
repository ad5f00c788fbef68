//! `LayerNorm` and `RMSNorm`: one cube per row.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::{BackwardContext, Op};
use super::launch::{buffer, empty, empty_like, len, per_cube, per_element};
use super::reduce::{ROW_UNITS, sum_over_cube};
use crate::NormKind;

/// Rows whose parameter gradients one unit adds, at least.
const STRIP_ROWS: usize = 16;
/// Partial sums of the parameter gradients, at most.
const MAX_STRIPS: usize = 64;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalize {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
}

impl Normalize {
    /// The output, and mean and 1 / standard deviation of each row, `[rows, 2]`.
    fn run(
        self,
        x: &CubeTensor,
        weight: &CubeTensor,
        bias: Option<&CubeTensor>,
    ) -> (CubeTensor, CubeTensor) {
        let width = len(weight);
        let rows = len(x).checked_div(width).unwrap_or(0);
        let (y, stats) = (empty_like(x), empty(x, [rows, 2]));
        if let Some(cubes) = per_cube(x, rows) {
            normalize::launch(
                &x.client,
                cubes,
                CubeDim::new_1d(ROW_UNITS),
                buffer(x),
                buffer(weight),
                buffer(bias.unwrap_or(weight)),
                buffer(&y),
                buffer(&stats),
                self.eps,
                width,
                self.kind == NormKind::Layer,
                bias.is_some(),
            );
        }
        (y, stats)
    }

    fn input_gradient<const N: usize>(
        ctx: &BackwardContext<CubeTensor, N>,
        kind: NormKind,
    ) -> CubeTensor {
        let (x, weight) = (ctx.input(0), ctx.input(1));
        let (width, dx) = (len(weight), empty_like(x));
        let rows = len(x).checked_div(width).unwrap_or(0);
        if let Some(cubes) = per_cube(x, rows) {
            input_gradient::launch(
                &x.client,
                cubes,
                CubeDim::new_1d(ROW_UNITS),
                buffer(x),
                buffer(weight),
                buffer(&ctx.saved),
                buffer(&ctx.grad),
                buffer(&dx),
                width,
                kind == NormKind::Layer,
            );
        }
        dx
    }

    /// The gradients of weight and bias.
    fn parameter_gradients<const N: usize>(
        ctx: &BackwardContext<CubeTensor, N>,
    ) -> [CubeTensor; 2] {
        let (x, width) = (ctx.input(0), len(ctx.input(1)));
        let rows = len(x).checked_div(width).unwrap_or(0);
        let strip_rows = rows.div_ceil(MAX_STRIPS).max(STRIP_ROWS);
        let strips = rows.div_ceil(strip_rows).max(1);
        let partial = [(); 2].map(|()| empty(x, [strips, width]));
        if let Some((cubes, units)) = per_element(x, strips * width) {
            parameter_gradients::launch(
                &x.client,
                cubes,
                units,
                buffer(x),
                buffer(&ctx.saved),
                buffer(&ctx.grad),
                buffer(&partial[0]),
                buffer(&partial[1]),
                width,
                strip_rows,
            );
        }
        let sums = [(); 2].map(|()| empty(x, [width]));
        if let Some((cubes, units)) = per_element(x, width) {
            sum_strips::launch(
                &x.client,
                cubes,
                units,
                buffer(&partial[0]),
                buffer(&partial[1]),
                buffer(&sums[0]),
                buffer(&sums[1]),
                strips,
            );
        }
        sums
    }
}

impl Op<2> for Normalize {
    type Saved = CubeTensor;
    const SAVES_INPUT: [bool; 2] = [true; 2];

    fn forward(&self, [x, weight]: [&CubeTensor; 2]) -> (CubeTensor, CubeTensor) {
        self.run(x, weight, None)
    }

    fn backward(&self, ctx: BackwardContext<CubeTensor, 2>) -> [Option<CubeTensor>; 2] {
        let [need_x, need_w] = ctx.needs_grad;
        let dx = need_x.then(|| Self::input_gradient(&ctx, self.kind));
        let [dw, _] = split(need_w.then(|| Self::parameter_gradients(&ctx)));
        [dx, dw]
    }
}

impl Op<3> for Normalize {
    type Saved = CubeTensor;
    const SAVES_INPUT: [bool; 3] = [true, true, false];

    fn forward(&self, [x, weight, bias]: [&CubeTensor; 3]) -> (CubeTensor, CubeTensor) {
        self.run(x, weight, Some(bias))
    }

    fn backward(&self, ctx: BackwardContext<CubeTensor, 3>) -> [Option<CubeTensor>; 3] {
        let [need_x, need_w, need_b] = ctx.needs_grad;
        let dx = need_x.then(|| Self::input_gradient(&ctx, self.kind));
        let [dw, db] = split((need_w || need_b).then(|| Self::parameter_gradients(&ctx)));
        [dx, dw, db]
    }
}

fn split(gradients: Option<[CubeTensor; 2]>) -> [Option<CubeTensor>; 2] {
    gradients.map_or([None, None], |gradients| gradients.map(Some))
}

#[cube(launch)]
fn normalize(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    stats: &mut [f32],
    eps: f32,
    width: usize,
    #[comptime] is_centered: bool,
    #[comptime] has_bias: bool,
) {
    let row = CUBE_POS;
    if 2 * row >= stats.len() {
        terminate!();
    }
    let (first, end, unit) = (row * width, row * width + width, UNIT_POS as usize);
    let mut mean = 0.0f32;
    if comptime!(is_centered) {
        let mut sum = 0.0f32;
        for i in range_stepped(first + unit, end, 64) {
            sum += x[i];
        }
        mean = sum_over_cube(sum) / width as f32;
    }
    let mut squares = 0.0f32;
    for i in range_stepped(first + unit, end, 64) {
        let centered = x[i] - mean;
        squares += centered * centered;
    }
    let variance = sum_over_cube(squares) / width as f32;
    let rstd = 1.0f32 / (variance + eps).sqrt();
    for i in range_stepped(first + unit, end, 64) {
        let scaled = (x[i] - mean) * rstd * weight[i - first];
        if comptime!(has_bias) {
            y[i] = scaled + bias[i - first];
        } else {
            y[i] = scaled;
        }
    }
    if unit == 0 {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

/// With `g = dy * weight` and the normalized `n`: `rstd * (g - mean(g) - n * mean(g * n))`, without `mean(g)`
/// for `RMSNorm`.
#[cube(launch)]
fn input_gradient(
    x: &[f32],
    weight: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    width: usize,
    #[comptime] is_centered: bool,
) {
    let row = CUBE_POS;
    if 2 * row >= stats.len() {
        terminate!();
    }
    let (first, end, unit) = (row * width, row * width + width, UNIT_POS as usize);
    let (mean, rstd) = (stats[2 * row], stats[2 * row + 1]);
    let mut sum = 0.0f32;
    let mut product = 0.0f32;
    for i in range_stepped(first + unit, end, 64) {
        let g = dy[i] * weight[i - first];
        sum += g;
        product += g * ((x[i] - mean) * rstd);
    }
    let product = sum_over_cube(product) / width as f32;
    let mut mean_g = 0.0f32;
    if comptime!(is_centered) {
        mean_g = sum_over_cube(sum) / width as f32;
    }
    for i in range_stepped(first + unit, end, 64) {
        let g = dy[i] * weight[i - first];
        let n = (x[i] - mean) * rstd;
        dx[i] = rstd * (g - mean_g - n * product);
    }
}

/// Partial sums over strips of rows: one unit per strip and column.
#[cube(launch)]
fn parameter_gradients(
    x: &[f32],
    stats: &[f32],
    dy: &[f32],
    weight_sums: &mut [f32],
    bias_sums: &mut [f32],
    width: usize,
    strip_rows: usize,
) {
    let i = ABSOLUTE_POS;
    if i < weight_sums.len() {
        let (strip, column) = (i / width, i % width);
        let first = strip * strip_rows;
        let end = min(first + strip_rows, stats.len() / 2);
        let mut weight_sum = 0.0f32;
        let mut bias_sum = 0.0f32;
        for row in first..end {
            let at = row * width + column;
            weight_sum += dy[at] * ((x[at] - stats[2 * row]) * stats[2 * row + 1]);
            bias_sum += dy[at];
        }
        weight_sums[i] = weight_sum;
        bias_sums[i] = bias_sum;
    }
}

#[cube(launch)]
fn sum_strips(
    weight_sums: &[f32],
    bias_sums: &[f32],
    weight: &mut [f32],
    bias: &mut [f32],
    strips: usize,
) {
    let column = ABSOLUTE_POS;
    let width = weight.len();
    if column < width {
        let mut weight_sum = 0.0f32;
        let mut bias_sum = 0.0f32;
        for strip in 0..strips {
            weight_sum += weight_sums[strip * width + column];
            bias_sum += bias_sums[strip * width + column];
        }
        weight[column] = weight_sum;
        bias[column] = bias_sum;
    }
}
