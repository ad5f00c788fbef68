//! `AdamW`, one launch for each tensor, and the norm of all gradients.

use burn::tensor::Tensor;
use burn_cubecl::Cube;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::apply::primitive;
use super::launch::{buffer, empty, empty_like, exclusive, len, per_element};
use super::reduce::{ROW_UNITS, sum_over_cube, total};
use crate::AdamwStep;
use crate::cpu::adamw::Constants;

/// Elements whose squares one cube adds.
const CUBE_ELEMENTS: usize = 4096;

/// Returns the new weight and moments; they reuse the storage of the old ones where nothing else shares it.
pub(crate) fn adamw(
    weight: Tensor<1>,
    gradient: Tensor<1>,
    moments: Option<[Tensor<1>; 2]>,
    weight_decay: f64,
    step: &AdamwStep,
) -> [Tensor<1>; 3] {
    let (weight, gradient) = (exclusive(primitive(weight)), primitive(gradient));
    let has_moments = moments.is_some();
    let [first, second] = match moments {
        Some(moments) => moments.map(|moment| exclusive(primitive(moment))),
        None => [empty_like(&weight), empty_like(&weight)],
    };
    let constants = Constants::new(step);
    if let Some((cubes, units)) = per_element(&weight, len(&weight)) {
        update::launch(
            &weight.client,
            cubes,
            units,
            buffer(&weight),
            buffer(&gradient),
            buffer(&first),
            buffer(&second),
            StepLaunch::new(
                constants.beta1,
                constants.one_minus_beta1,
                constants.beta2,
                constants.one_minus_beta2,
                constants.inv_sqrt_correction2,
                constants.eps,
                constants.neg_step_size,
                constants.grad_scale,
                constants.decay_factor(weight_decay),
            ),
            has_moments,
        );
    }
    [weight, first, second].map(Tensor::from_primitive::<Cube>)
}

/// The sum of all squares, `[1]`: partial sums of each tensor, then their sum.
pub(crate) fn sum_of_squares(tensors: &[&Tensor<1>]) -> Option<Tensor<1>> {
    let tensors: Vec<CubeTensor> = tensors.iter().map(|x| primitive((*x).clone())).collect();
    let like = tensors.first()?;
    let cubes_of = |x: &CubeTensor| len(x).div_ceil(CUBE_ELEMENTS);
    let partial = empty(like, [tensors.iter().map(cubes_of).sum::<usize>()]);
    let mut first = 0;
    for x in &tensors {
        let cubes = cubes_of(x);
        if let Some(count) = super::launch::per_cube(x, cubes) {
            let units = CubeDim::new_1d(ROW_UNITS);
            let args = (buffer(x), buffer(&partial));
            add_squares::launch(
                &x.client,
                count,
                units,
                args.0,
                args.1,
                first,
                cubes,
                CUBE_ELEMENTS,
            );
        }
        first += cubes;
    }
    Some(Tensor::from_primitive::<Cube>(total(&partial)))
}

/// The constants of an update.
#[derive(CubeType, CubeLaunch)]
struct Step {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    inv_sqrt_correction2: f32,
    eps: f32,
    neg_step_size: f32,
    grad_scale: f32,
    decay_factor: f32,
}

#[cube(launch)]
fn update(
    weight: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: Step,
    #[comptime] has_moments: bool,
) {
    let i = ABSOLUTE_POS;
    if i < weight.len() {
        let g = gradient[i] * step.grad_scale;
        let mut m = g * step.one_minus_beta1;
        let mut v = g * g * step.one_minus_beta2;
        if comptime!(has_moments) {
            m += first[i] * step.beta1;
            v += second[i] * step.beta2;
        }
        let divisor = v.sqrt() * step.inv_sqrt_correction2 + step.eps;
        weight[i] = weight[i] * step.decay_factor + m / divisor * step.neg_step_size;
        first[i] = m;
        second[i] = v;
    }
}

#[cube(launch)]
fn add_squares(
    x: &[f32],
    partial: &mut [f32],
    first: usize,
    cubes: usize,
    #[comptime] elements: usize,
) {
    let cube = CUBE_POS;
    if cube >= cubes {
        terminate!();
    }
    let begin = cube * elements;
    let end = min(begin + elements, x.len());
    let mut sum = 0.0f32;
    for i in range_stepped(begin + UNIT_POS as usize, end, 64) {
        sum += x[i] * x[i];
    }
    let sum = sum_over_cube(sum);
    if UNIT_POS == 0 {
        partial[first + cube] = sum;
    }
}
