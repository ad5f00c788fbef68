//! Linear layers as the blocks use them.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

/// A linear layer of zeros: [`initialize`](crate::init::initialize) or a weights file fills it.
pub(crate) fn zero_linear(d_in: usize, d_out: usize, bias: bool, device: &Device) -> Linear {
    Linear {
        weight: Param::from_tensor(Tensor::zeros([d_in, d_out], device)),
        bias: bias.then(|| Param::from_tensor(Tensor::zeros([d_out], device))),
    }
}

/// `x W + b`: `[batch, seq, d_in]` to `[batch, seq, d_out]`.
pub(crate) fn project(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    let bias = layer.bias.as_ref().map(Param::val);
    nextword_kernels::linear(x, layer.weight.val(), bias)
}
