//! Linear layers with the elementwise operations that follow them.

use burn::tensor::Tensor;

use crate::{
    Activation, LinearWeight, Precision, activate, linear_quantized, linear_with_precision,
};

/// What is applied to the output of a linear layer: first the sum, then the activation.
#[derive(Clone, Debug, Default)]
pub struct LinearFusion {
    /// Added to the output, `[batch, seq, d_out]`.
    pub residual: Option<Tensor<3>>,
    /// Applied to each element.
    pub activation: Option<Activation>,
}

impl LinearFusion {
    /// Applies the operations to the output of a linear layer, one after the other.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn apply(self, y: Tensor<3>) -> Tensor<3> {
        let y = match self.residual {
            Some(residual) => residual + y,
            None => y,
        };
        match self.activation {
            Some(f) => activate(f, y),
            None => y,
        }
    }
}

/// `activation(residual + x W + bias)`: `[batch, seq, d_in]` to `[batch, seq, d_out]`. On GPUs it is one
/// kernel in f32; elsewhere, it has the bits of separate operations.
///
/// # Panics
/// If the shapes do not match.
///
/// # Example
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use nextword_kernels::{Activation, LinearFusion, LinearWeight, Precision, linear_fused};
///
/// let device = Device::flex();
/// let x = Tensor::<3>::from_floats([[[1.0, 2.0]]], &device); // [batch 1, seq 1, d_in 2]
/// let weight = LinearWeight::Matrix(Tensor::from_floats([[1.0, -1.0], [1.0, -1.0]], &device));
/// let fusion = LinearFusion {
///     residual: Some(Tensor::ones([1, 1, 2], &device)),
///     activation: Some(Activation::Relu),
/// };
/// let y = linear_fused(Precision::F32, x, weight, None, fusion); // relu([1 + 3, 1 - 3])
/// assert_eq!(y.into_data().try_to_vec::<f32>().unwrap(), [4.0, 0.0]);
/// ```
pub fn linear_fused(
    precision: Precision,
    x: Tensor<3>,
    weight: LinearWeight,
    bias: Option<Tensor<1>>,
    fusion: LinearFusion,
) -> Tensor<3> {
    crate::linear::check_shapes(&x, weight.shape(), bias.as_ref());
    if let Some(residual) = &fusion.residual {
        let ([batch, seq, _], [_, d_out]) = (x.dims(), weight.shape());
        assert_eq!(
            residual.dims(),
            [batch, seq, d_out],
            "the residual has another shape than the output"
        );
    }
    #[cfg(feature = "gpu")]
    match &weight {
        LinearWeight::Matrix(weight)
            if precision == Precision::F32 && crate::gpu::linear::supports(&x, weight) =>
        {
            let LinearFusion {
                residual,
                activation,
            } = fusion;
            return crate::gpu::linear::linear(
                x,
                weight.clone(),
                false,
                bias,
                residual,
                activation,
            );
        }
        LinearWeight::Quantized(weight) if weight.has_gpu_kernel(&x) => {
            return weight.linear_on_gpu(x, bias, fusion.residual, fusion.activation);
        }
        _ => {}
    }
    let y = match weight {
        LinearWeight::Matrix(weight) => linear_with_precision(precision, x, weight, bias),
        LinearWeight::Quantized(weight) => linear_quantized(x, &weight, bias),
    };
    fusion.apply(y)
}
