//! `AdamW` (Loshchilov and Hutter 2019) over many parameters at once, with `PyTorch`'s arithmetic.

use pulp::Simd;

use super::par::{self, CHUNK, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};
use crate::AdamwStep;

/// One parameter and its moments.
#[derive(Debug)]
pub(crate) struct Parameter<'a> {
    /// The parameter, updated in place.
    pub(crate) value: &'a mut [f32],
    /// Gradient of the parameter.
    pub(crate) grad: &'a [f32],
    /// Running mean of the gradient.
    pub(crate) first_moment: &'a mut [f32],
    /// Running mean of the squared gradient.
    pub(crate) second_moment: &'a mut [f32],
    /// Weight decay of this parameter.
    pub(crate) weight_decay: f64,
}

/// Updates all parameters.
pub(crate) fn step(parameters: Vec<Parameter<'_>>, settings: &AdamwStep) {
    let mut chunks = Vec::new();
    for parameter in parameters {
        split_into_chunks(parameter, &mut chunks);
    }
    let constants = Constants::new(settings);
    let count = chunks.len();
    let chunks = Shared::new(&mut chunks);
    par::for_each(count, CHUNK, |i| {
        // SAFETY: `i` is below the number of chunks, and each chunk is processed by one task only.
        update(unsafe { &mut *chunks.at(i) }, constants);
    });
}

/// Splits a parameter into chunks for threads; all chunks except the first start at a cache line.
fn split_into_chunks<'a>(mut rest: Parameter<'a>, chunks: &mut Vec<Parameter<'a>>) {
    let len = rest.value.len();
    assert!(
        rest.grad.len() == len && rest.first_moment.len() == len && rest.second_moment.len() == len
    );
    let mut next = rest.value.as_ptr().align_offset(64);
    while next < rest.value.len() {
        let (value, value_rest) = rest.value.split_at_mut(next);
        let (grad, grad_rest) = rest.grad.split_at(next);
        let (first_moment, first_moment_rest) = rest.first_moment.split_at_mut(next);
        let (second_moment, second_moment_rest) = rest.second_moment.split_at_mut(next);
        let weight_decay = rest.weight_decay;
        chunks.push(Parameter {
            value,
            grad,
            first_moment,
            second_moment,
            weight_decay,
        });
        rest = Parameter {
            value: value_rest,
            grad: grad_rest,
            first_moment: first_moment_rest,
            second_moment: second_moment_rest,
            weight_decay,
        };
        next = CHUNK;
    }
    chunks.push(rest);
}

/// Constants of a step, computed in f64 and rounded once.
#[derive(Clone, Copy)]
pub(crate) struct Constants {
    pub(crate) lr: f64,
    pub(crate) beta1: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    /// 1 / square root of the bias correction of the second moment.
    pub(crate) inv_sqrt_correction2: f32,
    pub(crate) eps: f32,
    /// Minus the learning rate, divided by the bias correction of the first moment.
    pub(crate) neg_step_size: f32,
    pub(crate) grad_scale: f32,
}

impl Constants {
    pub(crate) fn new(step: &AdamwStep) -> Self {
        let t = step.step as f64;
        let correction1 = 1.0 - step.beta1.powf(t);
        let correction2 = 1.0 - step.beta2.powf(t);
        Self {
            lr: step.lr,
            beta1: step.beta1 as f32,
            one_minus_beta1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            one_minus_beta2: (1.0 - step.beta2) as f32,
            inv_sqrt_correction2: (1.0 / correction2.sqrt()) as f32,
            eps: step.eps as f32,
            neg_step_size: (-step.lr / correction1) as f32,
            grad_scale: step.gradient_scale as f32,
        }
    }

    /// Factor on the weight before the update.
    #[inline(always)]
    pub(crate) fn decay_factor(&self, weight_decay: f64) -> f32 {
        (1.0 - self.lr * weight_decay) as f32
    }
}

dispatch!(fn update(chunk: &mut Parameter<'_>, constants: Constants) => body);

#[inline(always)]
fn body<S: Simd>(s: S, chunk: &mut Parameter<'_>, c: Constants) {
    let splat = |x| s.splat_f32s(x);
    let decay_factor = splat(c.decay_factor(chunk.weight_decay));
    let (value_ptr, first_moment_ptr) = (chunk.value.as_mut_ptr(), chunk.first_moment.as_mut_ptr());
    let (grad_ptr, second_moment_ptr) = (chunk.grad.as_ptr(), chunk.second_moment.as_mut_ptr());
    let len = chunk.value.len().min(chunk.grad.len());
    let len = len
        .min(chunk.first_moment.len())
        .min(chunk.second_moment.len());
    for_lanes!(s, len, |offset, part| {
        // SAFETY: `offset` and `part` stay within the shortest of the four slices.
        unsafe {
            let grad = s.mul_f32s(load_part(s, grad_ptr, offset, part), splat(c.grad_scale));
            let first_moment =
                s.mul_f32s(load_part(s, first_moment_ptr, offset, part), splat(c.beta1));
            let first_moment = s.fma(grad, splat(c.one_minus_beta1), first_moment);
            let second_moment = s.mul_f32s(
                load_part(s, second_moment_ptr, offset, part),
                splat(c.beta2),
            );
            let second_moment = s.fma(
                s.mul_f32s(grad, grad),
                splat(c.one_minus_beta2),
                second_moment,
            );
            let divisor = s.fma(
                s.sqrt_f32s(second_moment),
                splat(c.inv_sqrt_correction2),
                splat(c.eps),
            );
            let value = s.mul_f32s(load_part(s, value_ptr, offset, part), decay_factor);
            let value = s.fma(
                s.div_f32s(first_moment, divisor),
                splat(c.neg_step_size),
                value,
            );
            store_part(s, first_moment_ptr, offset, part, first_moment);
            store_part(s, second_moment_ptr, offset, part, second_moment);
            store_part(s, value_ptr, offset, part, value);
        }
    });
}
