//! Gradients of `LayerNorm` and `RMSNorm`.

use pulp::Simd;

use super::elementwise::add_scaled;
use super::norm::Norm;
use super::par::Shared;
use super::reduce::reduce_rows;
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use crate::NormKind;

/// Gradients of a normalization.
#[derive(Debug)]
pub(crate) struct NormGrads<'a> {
    /// Gradient of the input; overwritten.
    pub(crate) x: &'a mut [f32],
    /// Gradient of the weight; accumulated.
    pub(crate) weight: &'a mut [f32],
    /// Gradient of the bias; accumulated. Empty for none.
    pub(crate) bias: &'a mut [f32],
}

/// Computes the gradients from `dy`. `x` is the input of the forward pass; `mean` and `rstd` are the
/// statistics that it saved.
pub(crate) fn backward(
    norm: &Norm<'_>,
    x: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    dy: &[f32],
    grads: NormGrads<'_>,
) {
    let (width, rows) = (norm.weight.len(), rstd.len());
    assert_eq!(rows.checked_mul(width), Some(x.len()));
    assert_eq!(mean.len(), rows);
    assert!(dy.len() == x.len() && grads.x.len() == x.len());
    assert_eq!(grads.weight.len(), width);
    assert!(grads.bias.is_empty() || grads.bias.len() == width);
    let dx = Shared::new(grads.x);
    let mut sums = vec![0.0; 2 * width];
    reduce_rows(rows, 2 * width, &mut sums, |first, count, partial| {
        let (d_weight, d_bias) = partial.split_at_mut(width);
        for row in first..first + count {
            let range = row * width..(row + 1) * width;
            let inputs = Row {
                kind: norm.kind,
                weight: norm.weight,
                x: &x[range.clone()],
                dy: &dy[range.clone()],
                mean: mean[row],
                rstd: rstd[row],
            };
            // SAFETY: `range` is within `dx`, and rows do not overlap.
            backward_row(
                &inputs,
                unsafe { dx.slice(range.start, width) },
                d_weight,
                d_bias,
            );
        }
    });
    let (d_weight, d_bias) = sums.split_at(width);
    add_scaled(grads.weight, 1.0, d_weight);
    if !grads.bias.is_empty() {
        add_scaled(grads.bias, 1.0, d_bias);
    }
}

/// Inputs of one row.
struct Row<'a> {
    kind: NormKind,
    weight: &'a [f32],
    x: &'a [f32],
    dy: &'a [f32],
    mean: f32,
    rstd: f32,
}

dispatch!(fn backward_row(
    row: &Row<'_>, dx: &mut [f32], d_weight: &mut [f32], d_bias: &mut [f32],
) => body);

/// With `n` the normalized x and `g = dy * weight`:
/// `dx = rstd * (g - mean(g) - n * mean(g * n))`, without `mean(g)` for `RMSNorm`.
#[inline(always)]
fn body<S: Simd>(s: S, row: &Row<'_>, dx: &mut [f32], d_weight: &mut [f32], d_bias: &mut [f32]) {
    let width = dx.len();
    assert!(row.x.len() == width && row.dy.len() == width && row.weight.len() == width);
    assert!(d_weight.len() == width && d_bias.len() == width);
    let (rstd, mean) = (s.splat_f32s(row.rstd), s.splat_f32s(row.mean));
    let (mut sum_g, mut sum_gn) = (s.zero(), s.zero());
    for_lanes!(s, width, |offset, part| {
        // SAFETY: all slices have `width` elements, as asserted above.
        unsafe {
            let n = s.sub_f32s(load_part(s, row.x.as_ptr(), offset, part), mean);
            let n = s.mul_f32s(n, rstd);
            let dy = load_part(s, row.dy.as_ptr(), offset, part);
            let weight = s.fma(dy, n, load_part(s, d_weight.as_ptr(), offset, part));
            store_part(s, d_weight.as_mut_ptr(), offset, part, weight);
            let bias = s.add_f32s(dy, load_part(s, d_bias.as_ptr(), offset, part));
            store_part(s, d_bias.as_mut_ptr(), offset, part, bias);
            let g = s.mul_f32s(dy, load_part(s, row.weight.as_ptr(), offset, part));
            sum_g = s.add_f32s(sum_g, g);
            sum_gn = s.fma(g, n, sum_gn);
        }
    });
    let inv_width = 1.0 / width as f32;
    let mean_g = match row.kind {
        NormKind::Layer => s.reduce_sum_f32s(sum_g) * inv_width,
        NormKind::Rms => 0.0,
    };
    let mean_gn = s.splat_f32s(-s.reduce_sum_f32s(sum_gn) * inv_width);
    let mean_g = s.splat_f32s(mean_g);
    for_lanes!(s, width, |offset, part| {
        // SAFETY: all slices have `width` elements, as asserted above.
        unsafe {
            let n = s.sub_f32s(load_part(s, row.x.as_ptr(), offset, part), mean);
            let n = s.mul_f32s(n, rstd);
            let dy = load_part(s, row.dy.as_ptr(), offset, part);
            let g = s.mul_f32s(dy, load_part(s, row.weight.as_ptr(), offset, part));
            let d = s.fma(n, mean_gn, s.sub_f32s(g, mean_g));
            store_part(s, dx.as_mut_ptr(), offset, part, s.mul_f32s(d, rstd));
        }
    });
}
