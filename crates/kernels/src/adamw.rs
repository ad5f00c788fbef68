//! `AdamW`, and the norm of all gradients.

use burn::tensor::Tensor;

use crate::AdamwStep;

/// The moments of one parameter, flat.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Option<Tensor<1>>,
    /// Running mean of the squared gradient.
    pub second: Option<Tensor<1>>,
}

/// Returns the updated parameter, flat, by `AdamW` (Loshchilov and Hutter 2017, arXiv 1711.05101)
/// with `PyTorch`'s arithmetic, and updates `moments`. Reuses the storage of `weight` and moments
/// that no other tensor shares.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{AdamwStep, Moments, adamw};
///
/// let device = Device::flex();
/// let weight = Tensor::<1>::from_floats([1.0, -1.0], &device);
/// let gradient = Tensor::<1>::from_floats([0.5, -2.0], &device);
/// let step = AdamwStep {
///     lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 1, gradient_scale: 1.0,
/// };
/// let mut moments = Moments::default();
/// let weight = adamw(weight, gradient, &mut moments, 0.0, &step);
/// // The first update moves each weight by the learning rate, against its gradient.
/// assert!(weight.all_close(Tensor::from_floats([0.9, -0.9], &device), None, Some(1e-6)));
/// ```
pub fn adamw(
    weight: Tensor<1>,
    gradient: Tensor<1>,
    moments: &mut Moments,
    weight_decay: f64,
    step: &AdamwStep,
) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&weight) {
        return fast::adamw(weight, gradient, moments, weight_decay, step);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&weight) {
        let old = moments.first.take().zip(moments.second.take());
        let old = old.map(|(first, second)| [first, second]);
        let [weight, first, second] =
            crate::gpu::adamw::adamw(weight, gradient, old, weight_decay, step);
        moments.first = Some(first);
        moments.second = Some(second);
        return weight;
    }
    reference(weight, gradient, moments, weight_decay, step)
}

fn reference(
    weight: Tensor<1>,
    gradient: Tensor<1>,
    moments: &mut Moments,
    weight_decay: f64,
    step: &AdamwStep,
) -> Tensor<1> {
    let (beta1, beta2) = (step.beta1, step.beta2);
    let t = step.step as f64;
    let correction1 = 1.0 - beta1.powf(t);
    let correction2 = (1.0 - beta2.powf(t)).sqrt();
    let g = match step.gradient_scale {
        1.0 => gradient,
        scale => gradient * scale,
    };
    let weight = weight * (1.0 - step.lr * weight_decay);
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
    let weight = weight - first.clone() / denominator * (step.lr / correction1);
    moments.first = Some(first);
    moments.second = Some(second);
    weight
}

/// Sum of the squares of all elements of all tensors, `[1]`, on their device; `None` if there are
/// no tensors.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::sum_of_squares;
///
/// let device = Device::flex();
/// let gradients = [Tensor::<1>::from_floats([3.0], &device), Tensor::from_floats([0.0, 4.0], &device)];
/// let norm = sum_of_squares(gradients.iter()).unwrap().sqrt();
/// assert_eq!(norm.into_scalar::<f32>(), 5.0);
/// ```
pub fn sum_of_squares<'a>(tensors: impl Iterator<Item = &'a Tensor<1>>) -> Option<Tensor<1>> {
    let tensors: Vec<&Tensor<1>> = tensors.collect();
    #[cfg(feature = "flex")]
    if tensors
        .first()
        .is_some_and(|first| crate::fused::is_flex_f32(first))
    {
        return Some(fast::sum_of_squares(&tensors));
    }
    #[cfg(feature = "gpu")]
    if tensors
        .first()
        .is_some_and(|first| crate::gpu::is_gpu_f32(first))
    {
        return crate::gpu::adamw::sum_of_squares(&tensors);
    }
    tensors
        .into_iter()
        .map(|g| (g.clone() * g.clone()).sum())
        .reduce(|a, b| a + b)
}

/// Number of values whose squares [`squares_by_chunk`] adds.
pub const SQUARES_CHUNK: usize = crate::cpu::par::CHUNK;

/// The sums of the squares of each [`SQUARES_CHUNK`] of `values`, on the CPU. Their sum over all tensors, from left to
/// right and rounded to f32, has the bits of [`sum_of_squares`] on flex: so it can be computed in parts, which begin at
/// multiples of the chunk.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{SQUARES_CHUNK, squares_by_chunk, sum_of_squares};
///
/// let values: Vec<f32> = (0..SQUARES_CHUNK + 5).map(|i| (i as f32).sin()).collect();
/// let (left, right) = values.split_at(SQUARES_CHUNK);
/// let parts = [squares_by_chunk(left), squares_by_chunk(right)].concat();
/// let whole = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
/// let expected: f32 = sum_of_squares([&whole].into_iter()).unwrap().into_scalar();
/// assert_eq!(parts.iter().sum::<f64>() as f32, expected);
/// ```
pub fn squares_by_chunk(values: &[f32]) -> Vec<f64> {
    crate::cpu::sum_of_squares::by_chunk(&[values])
}

#[cfg(feature = "flex")]
mod fast {
    use burn::backend::Flex;
    use burn::backend::flex::FlexTensor;
    use burn::tensor::Tensor;

    use super::Moments;
    use crate::AdamwStep;
    use crate::cpu::adamw as kernel;
    use crate::cpu::sum_of_squares;
    use crate::fused;

    pub(super) fn adamw(
        weight: Tensor<1>,
        gradient: Tensor<1>,
        moments: &mut Moments,
        weight_decay: f64,
        step: &AdamwStep,
    ) -> Tensor<1> {
        let shape = weight.dims();
        let flat = |tensor: Tensor<1>| into_dense(tensor);
        let zeros = || fused::from_buffer(fused::Buffer::zeros(shape[0]), shape);
        let (mut value, grad) = (flat(weight), flat(gradient));
        let mut first = moments.first.take().map_or_else(zeros, flat);
        let mut second = moments.second.take().map_or_else(zeros, flat);
        let parameter = kernel::Parameter {
            value: value.storage_mut(),
            grad: fused::values(&grad),
            first_moment: first.storage_mut(),
            second_moment: second.storage_mut(),
            weight_decay,
        };
        kernel::step(vec![parameter], step);
        moments.first = Some(Tensor::from_primitive::<Flex>(first));
        moments.second = Some(Tensor::from_primitive::<Flex>(second));
        Tensor::from_primitive::<Flex>(value)
    }

    pub(super) fn sum_of_squares(tensors: &[&Tensor<1>]) -> Tensor<1> {
        let tensors: Vec<FlexTensor> = tensors.iter().map(|g| into_dense((*g).clone())).collect();
        let slices: Vec<&[f32]> = tensors.iter().map(fused::values).collect();
        let sum = sum_of_squares::sum_of_squares(&slices);
        Tensor::from_primitive::<Flex>(fused::from_buffer(
            fused::Buffer::from_slice(&[sum as f32]),
            [1],
        ))
    }

    /// Returns a contiguous tensor that occupies its entire buffer, copying if necessary.
    fn into_dense(tensor: Tensor<1>) -> FlexTensor {
        let tensor = tensor.try_into_primitive::<Flex>();
        let tensor = tensor.unwrap_or_else(|e| unreachable!("parameters are flex tensors: {e:?}"));
        let fills_buffer = tensor.bytes().len() == 4 * tensor.layout().num_elements();
        if tensor.is_contiguous() && fills_buffer {
            return tensor;
        }
        fused::from_buffer(
            fused::Buffer::from_slice(fused::values(&tensor.to_contiguous())),
            tensor.layout().shape().clone(),
        )
    }
}
