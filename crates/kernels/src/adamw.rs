//! `AdamW`, and the norm of all gradients.

use burn::tensor::Tensor;

/// The running averages of one parameter, flat.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Of the gradient.
    pub first: Option<Tensor<1>>,
    /// Of its square.
    pub second: Option<Tensor<1>>,
}

/// The numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Learning rate.
    pub rate: f64,
    /// How much of the running average stays.
    pub beta1: f64,
    /// How much of the running average of squares stays.
    pub beta2: f64,
    /// Keeps the divisor away from 0.
    pub eps: f64,
    /// Number of this update, counted from 1.
    pub number: u64,
    /// Factor on the gradient: below 1 where the norm of all is clipped.
    pub gradient_scale: f64,
}

/// The new value of a parameter, flat, by Loshchilov and Hutter's `AdamW` (2017, arXiv 1711.05101)
/// with `PyTorch`'s arithmetic; `moments` are renewed. `weight` and moments that nobody else
/// holds are changed in place.
pub fn adamw(
    weight: Tensor<1>,
    gradient: Tensor<1>,
    moments: &mut Moments,
    decay: f64,
    step: &AdamwStep,
) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if crate::fused::is_fast(&weight) {
        return fast::adamw(weight, gradient, moments, decay, step);
    }
    reference(weight, gradient, moments, decay, step)
}

fn reference(
    weight: Tensor<1>,
    gradient: Tensor<1>,
    moments: &mut Moments,
    decay: f64,
    step: &AdamwStep,
) -> Tensor<1> {
    let (beta1, beta2) = (step.beta1, step.beta2);
    let number = step.number as f64;
    let correction1 = 1.0 - beta1.powf(number);
    let correction2 = (1.0 - beta2.powf(number)).sqrt();
    let g = match step.gradient_scale {
        1.0 => gradient,
        scale => gradient * scale,
    };
    let weight = weight * (1.0 - step.rate * decay);
    let first = match moments.first.take() {
        Some(first) => first * beta1 + g.clone() * (1.0 - beta1),
        None => g.clone() * (1.0 - beta1),
    };
    let square = g.clone() * g;
    let second = match moments.second.take() {
        Some(second) => second * beta2 + square * (1.0 - beta2),
        None => square * (1.0 - beta2),
    };
    let denominator = second.clone().sqrt() / correction2 + step.eps;
    let weight = weight - first.clone() / denominator * (step.rate / correction1);
    moments.first = Some(first);
    moments.second = Some(second);
    weight
}

/// The sum of the squares of all numbers of all tensors, `[1]`, on their device; `None` of none.
pub fn sum_of_squares<'a>(tensors: impl Iterator<Item = &'a Tensor<1>>) -> Option<Tensor<1>> {
    let tensors: Vec<&Tensor<1>> = tensors.collect();
    #[cfg(feature = "flex")]
    if tensors
        .first()
        .is_some_and(|first| crate::fused::is_fast(first))
    {
        return Some(fast::sum_of_squares(&tensors));
    }
    tensors
        .into_iter()
        .map(|g| (g.clone() * g.clone()).sum())
        .reduce(|a, b| a + b)
}

#[cfg(feature = "flex")]
mod fast {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::Tensor;

    use super::{AdamwStep, Moments};
    use crate::cpu::adamw::{Parameter, Step, step as run};
    use crate::cpu::squares;
    use crate::fused;

    pub(super) fn adamw(
        weight: Tensor<1>,
        gradient: Tensor<1>,
        moments: &mut Moments,
        decay: f64,
        step: &AdamwStep,
    ) -> Tensor<1> {
        let shape = weight.dims();
        let flat = |tensor: Tensor<1>| contiguous(tensor);
        let zeros = || fused::tensor(fused::Buffer::zeros(shape[0]), shape);
        let (mut value, grad) = (flat(weight), flat(gradient));
        let mut mean = moments.first.take().map_or_else(zeros, flat);
        let mut square = moments.second.take().map_or_else(zeros, flat);
        let parameter = Parameter {
            value: value.storage_mut(),
            grad: fused::values(&grad),
            mean: mean.storage_mut(),
            square: square.storage_mut(),
            decay,
        };
        let settings = Step {
            rate: step.rate,
            beta1: step.beta1,
            beta2: step.beta2,
            eps: step.eps,
            number: step.number,
            grad_scale: step.gradient_scale,
        };
        run(vec![parameter], &settings);
        moments.first = Some(Tensor::from_primitive::<Flex>(mean));
        moments.second = Some(Tensor::from_primitive::<Flex>(square));
        Tensor::from_primitive::<Flex>(value)
    }

    pub(super) fn sum_of_squares(tensors: &[&Tensor<1>]) -> Tensor<1> {
        let tensors: Vec<FlexTensor> = tensors.iter().map(|g| contiguous((*g).clone())).collect();
        let slices: Vec<&[f32]> = tensors.iter().map(fused::values).collect();
        let sum = squares::sum_of_squares(&slices);
        Tensor::from_primitive::<Flex>(fused::tensor(fused::Buffer::of(&[sum as f32]), [1]))
    }

    /// The tensor as one run of numbers that is the whole of its buffer.
    fn contiguous(tensor: Tensor<1>) -> FlexTensor {
        let tensor = tensor.try_into_primitive::<Flex>();
        let tensor = tensor.unwrap_or_else(|e| unreachable!("parameters are plain: {e:?}"));
        let whole = tensor.bytes().len() == 4 * tensor.layout().num_elements();
        if tensor.is_contiguous() && whole {
            return tensor;
        }
        fused::tensor(
            fused::Buffer::of(fused::values(&tensor.to_contiguous())),
            tensor.layout().shape().clone(),
        )
    }
}
