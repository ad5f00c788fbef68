//! Linear layers as the blocks use them.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use nextword_kernels::{Bits, Precision, QuantizedMatrix};

/// A linear layer.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`; of no size where the layer is quantized.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    quantized: Option<QuantizedMatrix>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Linear {
    /// The weight in 8 or 4 bits, where that is what it has.
    pub fn quantized(&self) -> Option<&QuantizedMatrix> {
        self.quantized.as_ref()
    }

    /// Rounds the weight.
    pub(crate) fn quantize(&mut self, bits: Bits) {
        let weight = QuantizedMatrix::of_weight(self.weight.val(), bits);
        self.replace(weight);
    }

    /// Takes `weight` instead of its own.
    pub(crate) fn replace(&mut self, weight: QuantizedMatrix) {
        self.weight = nothing(&self.weight.val().device());
        self.quantized = Some(weight);
    }
}

/// A parameter of no size, in the place of one that is held quantized.
pub(crate) fn nothing(device: &Device) -> Param<Tensor<2>> {
    Param::from_tensor(Tensor::zeros([0, 0], device))
}

/// A matrix that holds its shape's place until [`initialize`](crate::init::initialize) or a weights
/// file gives it values: one zero, seen everywhere, so that a model is never in memory twice.
pub(crate) fn placeholder(shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    let zero = Tensor::<2>::zeros([1, 1], device);
    Param::from_tensor(zero.expand(shape))
}

/// A linear layer of zeros: [`initialize`](crate::init::initialize) or a weights file fills it.
pub(crate) fn zero_linear(d_in: usize, d_out: usize, bias: bool, device: &Device) -> Linear {
    Linear {
        weight: placeholder([d_in, d_out], device),
        bias: bias.then(|| Param::from_tensor(Tensor::zeros([d_out], device))),
        quantized: None,
        precision: Precision::F32,
    }
}

/// `x W + b`: `[batch, seq, d_in]` to `[batch, seq, d_out]`.
pub(crate) fn project(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    let bias = layer.bias.as_ref().map(Param::val);
    match &layer.quantized {
        Some(weight) => nextword_kernels::linear_quantized(x, weight, bias),
        None => nextword_kernels::linear_in(layer.precision, x, layer.weight.val(), bias),
    }
}
