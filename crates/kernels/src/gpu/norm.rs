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
/// Rows of a cube that computes all gradients, at least.
const CUBE_ROWS: usize = 4;
/// Cubes that compute all gradients, at most.
const MAX_CUBES: usize = 512;

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
        summed(&partial, strips, width)
    }

    /// The gradients of the input, the weight and the bias.
    fn all_gradients<const N: usize>(
        ctx: &BackwardContext<CubeTensor, N>,
        kind: NormKind,
    ) -> [CubeTensor; 3] {
        let (x, weight) = (ctx.input(0), ctx.input(1));
        let (width, dx) = (len(weight), empty_like(x));
        let rows = len(x).checked_div(width).unwrap_or(0);
        let cube_rows = rows.div_ceil(MAX_CUBES).max(CUBE_ROWS);
        let strips = rows.div_ceil(cube_rows);
        let partial = [(); 2].map(|()| empty(x, [strips.max(1), width]));
        if let Some(cubes) = per_cube(x, strips) {
            all_gradients::launch(
                &x.client,
                cubes,
                CubeDim::new_1d(ROW_UNITS),
                buffer(x),
                buffer(weight),
                buffer(&ctx.saved),
                buffer(&ctx.grad),
                buffer(&dx),
                buffer(&partial[0]),
                buffer(&partial[1]),
                width,
                cube_rows,
                kind == NormKind::Layer,
            );
        }
        let [d_weight, d_bias] = summed(&partial, strips, width);
        [dx, d_weight, d_bias]
    }

    /// The gradients that are needed of the input, the weight and the bias.
    fn gradients<const N: usize>(
        self,
        ctx: &BackwardContext<CubeTensor, N>,
        [need_x, need_w, need_b]: [bool; 3],
    ) -> [Option<CubeTensor>; 3] {
        if need_x && (need_w || need_b) {
            return Self::all_gradients(ctx, self.kind).map(Some);
        }
        let dx = need_x.then(|| Self::input_gradient(ctx, self.kind));
        let [dw, db] = split((need_w || need_b).then(|| Self::parameter_gradients(ctx)));
        [dx, dw, db]
    }
}

/// The sums of partial sums of the gradients of weight and bias.
fn summed(partial: &[CubeTensor; 2], strips: usize, width: usize) -> [CubeTensor; 2] {
    let sums = [(); 2].map(|()| empty(&partial[0], [width]));
    if let Some((cubes, units)) = per_element(&partial[0], width) {
        sum_strips::launch(
            &partial[0].client,
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

impl Op<2> for Normalize {
    type Saved = CubeTensor;
    const SAVES_INPUT: [bool; 2] = [true; 2];

    fn forward(&self, [x, weight]: [&CubeTensor; 2], _: [bool; 2]) -> (CubeTensor, CubeTensor) {
        self.run(x, weight, None)
    }

    fn backward(&self, ctx: BackwardContext<CubeTensor, 2>) -> [Option<CubeTensor>; 2] {
        let [need_x, need_w] = ctx.needs_grad;
        let [dx, dw, _] = self.gradients(&ctx, [need_x, need_w, false]);
        [dx, dw]
    }
}

impl Op<3> for Normalize {
    type Saved = CubeTensor;
    const SAVES_INPUT: [bool; 3] = [true, true, false];

    fn forward(
        &self,
        [x, weight, bias]: [&CubeTensor; 3],
        _: [bool; 3],
    ) -> (CubeTensor, CubeTensor) {
        self.run(x, weight, Some(bias))
    }

    fn backward(&self, ctx: BackwardContext<CubeTensor, 3>) -> [Option<CubeTensor>; 3] {
        self.gradients(&ctx, ctx.needs_grad)
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

/// One cube per row.
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
    let means = row_means(x, weight, stats, dy, row, width, is_centered);
    let (mean, rstd) = (stats[2 * row], stats[2 * row + 1]);
    let (first, end) = (row * width, row * width + width);
    for i in range_stepped(first + UNIT_POS as usize, end, 64) {
        let normalized = (x[i] - mean) * rstd;
        dx[i] = rstd * (dy[i] * weight[i - first] - means.gradient - normalized * means.product);
    }
}

/// Means over a row.
#[derive(CubeType, Clone, Copy)]
struct Means {
    gradient: f32,
    product: f32,
}

/// With `g = dy * weight` and the normalized `n`, the gradient of the input is
/// `rstd * (g - mean(g) - n * mean(g * n))`, without `mean(g)` for `RMSNorm`.
#[cube]
fn row_means(
    x: &[f32],
    weight: &[f32],
    stats: &[f32],
    dy: &[f32],
    row: usize,
    width: usize,
    #[comptime] is_centered: bool,
) -> Means {
    let (first, end) = (row * width, row * width + width);
    let (mean, rstd) = (stats[2 * row], stats[2 * row + 1]);
    let mut sum = 0.0f32;
    let mut product = 0.0f32;
    for i in range_stepped(first + UNIT_POS as usize, end, 64) {
        let g = dy[i] * weight[i - first];
        sum += g;
        product += g * ((x[i] - mean) * rstd);
    }
    let mean_product = sum_over_cube(product) / width as f32;
    let mut mean_gradient = 0.0f32;
    if comptime!(is_centered) {
        mean_gradient = sum_over_cube(sum) / width as f32;
    }
    Means {
        gradient: mean_gradient,
        product: mean_product,
    }
}

/// One cube for some rows, which also adds their gradients of the parameters.
#[cube(launch)]
fn all_gradients(
    x: &[f32],
    weight: &[f32],
    stats: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    weight_sums: &mut [f32],
    bias_sums: &mut [f32],
    width: usize,
    cube_rows: usize,
    #[comptime] is_centered: bool,
) {
    let (begin, sums) = (CUBE_POS * cube_rows, CUBE_POS * width);
    let rows = stats.len() / 2;
    if begin >= rows {
        terminate!();
    }
    let end = min(begin + cube_rows, rows);
    for row in begin..end {
        let means = row_means(x, weight, stats, dy, row, width, is_centered);
        let (mean, rstd) = (stats[2 * row], stats[2 * row + 1]);
        for column in range_stepped(UNIT_POS as usize, width, 64) {
            let (i, at) = (row * width + column, sums + column);
            let normalized = (x[i] - mean) * rstd;
            dx[i] = rstd * (dy[i] * weight[column] - means.gradient - normalized * means.product);
            let mut weight_sum = dy[i] * normalized;
            let mut bias_sum = dy[i];
            if row > begin {
                weight_sum += weight_sums[at];
                bias_sum += bias_sums[at];
            }
            weight_sums[at] = weight_sum;
            bias_sums[at] = bias_sum;
        }
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
