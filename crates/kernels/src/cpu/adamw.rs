//! `AdamW` (Loshchilov and Hutter 2019) over many parameters at once, with `PyTorch`'s arithmetic.

use pulp::Simd;

use super::par::{self, CHUNK, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part, store_part};

/// One parameter and its moments.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The numbers to change.
    pub value: &'a mut [f32],
    /// Their gradient.
    pub grad: &'a [f32],
    /// Running mean of the gradient.
    pub mean: &'a mut [f32],
    /// Running mean of its square.
    pub square: &'a mut [f32],
    /// Weight decay of this parameter.
    pub decay: f64,
}

/// One step's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Learning rate.
    pub rate: f64,
    /// How much of the running mean stays.
    pub beta1: f64,
    /// How much of the running mean of squares stays.
    pub beta2: f64,
    /// Keeps the divisor away from 0.
    pub eps: f64,
    /// Number of this step, from 1 on.
    pub number: u64,
    /// Factor on the gradients: below 1 where their norm is clipped.
    pub grad_scale: f64,
}

/// Changes all parameters.
pub fn step(parameters: Vec<Parameter<'_>>, settings: &Step) {
    let mut pieces = Vec::new();
    for parameter in parameters {
        cut(parameter, &mut pieces);
    }
    let constants = Constants::new(settings);
    let count = pieces.len();
    let pieces = Shared::new(&mut pieces);
    par::for_each(count, CHUNK, |i| {
        // SAFETY: each piece is taken once.
        update(unsafe { &mut *pieces.at(i) }, constants);
    });
}

/// Cuts a parameter into pieces for threads, all but the first of which begin at a cache line.
fn cut<'a>(mut rest: Parameter<'a>, pieces: &mut Vec<Parameter<'a>>) {
    let len = rest.value.len();
    assert!(rest.grad.len() == len && rest.mean.len() == len && rest.square.len() == len);
    let mut next = rest.value.as_ptr().align_offset(64);
    while next < rest.value.len() {
        let (value, value_rest) = rest.value.split_at_mut(next);
        let (grad, grad_rest) = rest.grad.split_at(next);
        let (mean, mean_rest) = rest.mean.split_at_mut(next);
        let (square, square_rest) = rest.square.split_at_mut(next);
        let decay = rest.decay;
        pieces.push(Parameter {
            value,
            grad,
            mean,
            square,
            decay,
        });
        rest = Parameter {
            value: value_rest,
            grad: grad_rest,
            mean: mean_rest,
            square: square_rest,
            decay,
        };
        next = CHUNK;
    }
    pieces.push(rest);
}

/// A step's settings, worked out in f64 and rounded once.
#[derive(Clone, Copy)]
struct Constants {
    rate: f64,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    /// 1 / square root of the correction of the second moment.
    root: f32,
    eps: f32,
    /// Minus the rate, corrected for the first moment's start at 0.
    pace: f32,
    grad_scale: f32,
}

impl Constants {
    fn new(step: &Step) -> Self {
        let number = step.number as f64;
        let correct1 = 1.0 - step.beta1.powf(number);
        let correct2 = 1.0 - step.beta2.powf(number);
        Self {
            rate: step.rate,
            beta1: step.beta1 as f32,
            rest1: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            rest2: (1.0 - step.beta2) as f32,
            root: (1.0 / correct2.sqrt()) as f32,
            eps: step.eps as f32,
            pace: (-step.rate / correct1) as f32,
            grad_scale: step.grad_scale as f32,
        }
    }
}

dispatch!(fn update(piece: &mut Parameter<'_>, constants: Constants) => body);

#[inline(always)]
fn body<S: Simd>(s: S, piece: &mut Parameter<'_>, c: Constants) {
    let all = |x| s.splat_f32s(x);
    let stay = all((1.0 - c.rate * piece.decay) as f32);
    let (value_at, mean_at) = (piece.value.as_mut_ptr(), piece.mean.as_mut_ptr());
    let (grad_at, square_at) = (piece.grad.as_ptr(), piece.square.as_mut_ptr());
    for_lanes!(s, piece.value.len(), |at, part| {
        // SAFETY: all four slices have the same length, checked where pieces are cut.
        unsafe {
            let grad = s.mul_f32s(load_part(s, grad_at, at, part), all(c.grad_scale));
            let mean = s.mul_f32s(load_part(s, mean_at, at, part), all(c.beta1));
            let mean = s.fma(grad, all(c.rest1), mean);
            let square = s.mul_f32s(load_part(s, square_at, at, part), all(c.beta2));
            let square = s.fma(s.mul_f32s(grad, grad), all(c.rest2), square);
            let divisor = s.fma(s.sqrt_f32s(square), all(c.root), all(c.eps));
            let value = s.mul_f32s(load_part(s, value_at, at, part), stay);
            let value = s.fma(s.div_f32s(mean, divisor), all(c.pace), value);
            store_part(s, mean_at, at, part, mean);
            store_part(s, square_at, at, part, square);
            store_part(s, value_at, at, part, value);
        }
    });
}
