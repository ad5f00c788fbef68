//! The linear layer of attention and feed-forward.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use nextword_kernels::{
    Bits, DropoutMask, LinearFusion, LinearWeight, Precision, QuantizedMatrix, RowUpdate,
};

use crate::lora::Lora;

/// A linear layer.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`; empty if the layer is quantized.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    quantized: Option<QuantizedMatrix>,
    /// The layer's adapter, if it has one.
    pub(crate) lora: Option<Lora>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

impl Linear {
    /// The weight of a quantized layer.
    pub fn quantized(&self) -> Option<&QuantizedMatrix> {
        self.quantized.as_ref()
    }

    /// Shape of the weight, `[d_in, d_out]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        match &self.quantized {
            Some(weight) => weight.shape(),
            None => self.weight.val().dims(),
        }
    }

    /// Quantizes the weight; 4 bits for inputs with these mean squares, if they are known.
    pub(crate) fn quantize(&mut self, bits: Bits, mean_squares: Option<&[f32]>) {
        let weight = self.weight.val();
        let weight = QuantizedMatrix::from_weight_and_inputs(weight, bits, mean_squares);
        self.set_quantized(weight);
    }

    /// Removes the quantized weight, which a float weight replaces.
    pub(crate) fn take_quantized(&mut self) -> Option<QuantizedMatrix> {
        self.quantized.take()
    }

    /// Replaces the float weight with `weight`.
    pub(crate) fn set_quantized(&mut self, weight: QuantizedMatrix) {
        self.weight = empty_param(&self.weight.val().device());
        self.quantized = Some(weight);
    }

    /// The weight, in either representation.
    pub(crate) fn linear_weight(&self) -> LinearWeight {
        match &self.quantized {
            Some(weight) => LinearWeight::Quantized(weight.clone()),
            None => LinearWeight::Matrix(self.weight.val()),
        }
    }

    /// `x W + b`, plus the adapter's `scale (x A) B`: `[batch, seq, d_in]` to `[batch, seq, d_out]`.
    /// `dropout` is that of the adapter.
    pub(crate) fn forward(&self, x: Tensor<3>, dropout: Option<DropoutMask>) -> Tensor<3> {
        let (weight, bias) = (self.linear_weight(), self.bias.as_ref().map(Param::val));
        let Some(lora) = &self.lora else {
            return self.forward_rows(x, &[]);
        };
        let update = lora.update(dropout);
        let Some(factors) = lora.output_factors(&weight) else {
            return nextword_kernels::linear_lora(self.precision, x, weight, bias, update);
        };
        let y = nextword_kernels::linear_lora(self.precision, x, weight, None, update);
        let y = y * factors.unsqueeze();
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// `x W + b` without an adapter, and the operations that follow it.
    pub(crate) fn forward_fused(&self, x: Tensor<3>, fusion: LinearFusion) -> Tensor<3> {
        let (weight, bias) = (self.linear_weight(), self.bias.as_ref().map(Param::val));
        nextword_kernels::linear_fused(self.precision, x, weight, bias, fusion)
    }

    /// `x W + b`, plus the updates of some rows.
    pub(crate) fn forward_rows(&self, x: Tensor<3>, updates: &[RowUpdate]) -> Tensor<3> {
        let (weight, bias) = (self.linear_weight(), self.bias.as_ref().map(Param::val));
        let precision = self.precision;
        if let [RowUpdate { rows, update }] = updates
            && rows.len() == x.dims()[0]
        {
            return nextword_kernels::linear_lora(precision, x, weight, bias, update.clone());
        }
        let input = x.clone();
        let y = match weight {
            LinearWeight::Quantized(weight) => nextword_kernels::linear_quantized(x, &weight, bias),
            LinearWeight::Matrix(weight) => {
                nextword_kernels::linear_with_precision(precision, x, weight, bias)
            }
        };
        if updates.is_empty() {
            return y;
        }
        nextword_kernels::add_row_updates(y, input, updates)
    }
}

/// An empty parameter, a placeholder for a quantized one.
pub(crate) fn empty_param(device: &Device) -> Param<Tensor<2>> {
    Param::from_tensor(Tensor::zeros([0, 0], device))
}

/// A matrix without memory of its own until [`initialize`](crate::init::initialize) or a weights
/// file fills it: one zero, expanded to `shape`. A model is thus never in memory twice.
pub(crate) fn placeholder(shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    let zero = Tensor::<2>::zeros([1, 1], device);
    Param::from_tensor(zero.expand(shape))
}

/// A linear layer of zeros, for [`initialize`](crate::init::initialize) or a weights file to fill.
pub(crate) fn zero_linear(d_in: usize, d_out: usize, bias: bool, device: &Device) -> Linear {
    Linear {
        weight: placeholder([d_in, d_out], device),
        bias: bias.then(|| Param::from_tensor(Tensor::zeros([d_out], device))),
        quantized: None,
        lora: None,
        precision: Precision::F32,
    }
}
