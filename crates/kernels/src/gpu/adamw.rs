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

/// Tensors whose squares one launch adds: as many buffers as every adapter has for them.
const GROUP: usize = 6;

/// The sum of all squares, `[1]`: partial sums of the tensors, then their sum.
pub(crate) fn sum_of_squares(tensors: &[&Tensor<1>]) -> Option<Tensor<1>> {
    let tensors: Vec<CubeTensor> = tensors.iter().map(|x| primitive((*x).clone())).collect();
    let like = tensors.first()?;
    let cubes_of = |x: &CubeTensor| len(x).div_ceil(CUBE_ELEMENTS);
    let partial = empty(like, [tensors.iter().map(cubes_of).sum::<usize>()]);
    let mut first = 0;
    let filled: Vec<&CubeTensor> = tensors.iter().filter(|x| len(x) > 0).collect();
    for group in filled.chunks(GROUP) {
        // Where a group has fewer tensors, the rest of the arguments have no cubes.
        let of = |i: usize| group.get(i).copied().unwrap_or(group[0]);
        let mut cubes = 0;
        let ends = [0, 1, 2, 3, 4, 5].map(|i| {
            cubes += group.get(i).map_or(0, |x| cubes_of(x));
            cubes
        });
        if let Some(count) = super::launch::per_cube(like, cubes) {
            add_squares::launch(
                &like.client,
                count,
                CubeDim::new_1d(ROW_UNITS),
                buffer(of(0)),
                buffer(of(1)),
                buffer(of(2)),
                buffer(of(3)),
                buffer(of(4)),
                buffer(of(5)),
                buffer(&partial),
                EndsLaunch::new(ends[0], ends[1], ends[2], ends[3], ends[4], ends[5]),
                first,
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

/// One past the last cube of each tensor of a group.
#[derive(CubeType, CubeLaunch)]
struct Ends {
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
}

#[cube(launch)]
fn add_squares(
    a: &[f32],
    b: &[f32],
    c: &[f32],
    d: &[f32],
    e: &[f32],
    f: &[f32],
    partial: &mut [f32],
    ends: Ends,
    first: usize,
    #[comptime] elements: usize,
) {
    let cube = CUBE_POS;
    if cube >= ends.f {
        terminate!();
    }
    let mut sum = 0.0f32;
    if cube < ends.a {
        sum += sum_of_part(a, cube, elements);
    } else if cube < ends.b {
        sum += sum_of_part(b, cube - ends.a, elements);
    } else if cube < ends.c {
        sum += sum_of_part(c, cube - ends.b, elements);
    } else if cube < ends.d {
        sum += sum_of_part(d, cube - ends.c, elements);
    } else if cube < ends.e {
        sum += sum_of_part(e, cube - ends.d, elements);
    } else {
        sum += sum_of_part(f, cube - ends.e, elements);
    }
    let sum = sum_over_cube(sum);
    if UNIT_POS == 0 {
        partial[first + cube] = sum;
    }
}

/// The sum of this unit's squares of a part of a tensor.
#[cube]
fn sum_of_part(x: &[f32], part: usize, #[comptime] elements: usize) -> f32 {
    let begin = part * elements;
    let end = min(begin + elements, x.len());
    let mut sum = 0.0f32;
    for i in range_stepped(begin + UNIT_POS as usize, end, 64) {
        sum += x[i] * x[i];
    }
    sum
}
