//! The adapter of one linear layer.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use nextword_base::CounterRng;
use nextword_kernels::{LinearWeight, LowRankUpdate};

use super::LowRank;
use crate::weights::to_f32_vec;
use crate::{ForwardContext, Hook, Probe};

/// The trained part of an adapted linear layer.
#[derive(Module, Debug)]
pub(crate) struct Lora {
    /// `[d_in, rank]`.
    pub(crate) a: Param<Tensor<2>>,
    /// `[rank, d_out]`.
    pub(crate) b: Param<Tensor<2>>,
    /// `DoRA`'s magnitudes, `[d_out]`.
    pub(crate) magnitude: Option<Param<Tensor<1>>>,
    #[module(skip)]
    scale: f32,
    #[module(skip)]
    dropout: f64,
    /// Squared norms of the base weight's columns, `[d_out]`, off the autodiff graph; with magnitudes only.
    #[module(skip)]
    squared_norms: Option<Tensor<1>>,
}

impl Lora {
    /// The adapter `module` of the layer with `weight`, on `device`.
    pub(crate) fn new(
        module: &LowRank,
        weight: &LinearWeight,
        dropout: f64,
        device: &Device,
    ) -> Self {
        let LowRank {
            rank, d_in, d_out, ..
        } = *module;
        let matrix = |values: &[f32], shape: [usize; 2]| {
            let data = TensorData::new(values.to_vec(), shape);
            Param::from_tensor(Tensor::from_data(data, device))
        };
        let magnitude = module.magnitude.as_ref().map(|values| {
            let data = TensorData::new(values.clone(), [d_out]);
            Param::from_tensor(Tensor::from_data(data, device))
        });
        Self {
            a: matrix(&module.a, [d_in, rank]),
            b: matrix(&module.b, [rank, d_out]),
            squared_norms: magnitude.as_ref().map(|_| squared_norms(weight, device)),
            magnitude,
            scale: module.scale,
            dropout,
        }
    }

    /// Copies the adapter from the device.
    pub(crate) fn read(&self) -> LowRank {
        let ([d_in, rank], [_, d_out]) = (self.a.val().dims(), self.b.val().dims());
        let magnitude = self.magnitude.as_ref().map(|m| m.val().into_data());
        LowRank {
            a: to_f32_vec(self.a.val().into_data()),
            b: to_f32_vec(self.b.val().into_data()),
            rank,
            d_in,
            d_out,
            scale: self.scale,
            magnitude: magnitude.map(to_f32_vec),
        }
    }

    /// The update for the input of the hook `hook`, `[batch, seq, d_in]`.
    pub(crate) fn update<P: Probe>(
        &self,
        x: &Tensor<3>,
        hook: Hook,
        ctx: &mut ForwardContext<'_, P>,
    ) -> LowRankUpdate {
        if ctx.is_probed() {
            let activations = nextword_kernels::linear(x.clone(), self.a.val(), None);
            ctx.record(hook, &activations);
        }
        LowRankUpdate {
            a: self.a.val(),
            b: self.b.val(),
            scale: self.scale,
            dropout: ctx.dropout_mask(hook, x, self.dropout),
        }
    }

    /// With magnitudes, the factor of each output unit, `[d_out]`: its magnitude divided by the norm of its weights,
    /// which the backward pass treats as a constant.
    ///
    /// The norms of `W + s A B` follow from products of the size of `A` and `B`.
    pub(crate) fn output_factors(&self, weight: &LinearWeight) -> Option<Tensor<1>> {
        let (magnitude, squared_norms) = (self.magnitude.as_ref()?, self.squared_norms.as_ref()?);
        let [a, b] = [&self.a, &self.b].map(|param| param.val().without_autodiff());
        let gram = a.clone().transpose().matmul(a.clone()); // [rank, rank]
        let projected = rows_times_weight(a.transpose(), weight); // [rank, d_out]
        let scale = self.scale;
        let linear_term = (b.clone() * projected).sum_dim(0) * (2.0 * scale);
        let square_term = (b.clone() * gram.matmul(b)).sum_dim(0) * (scale * scale);
        let squares = squared_norms.clone() + (linear_term + square_term).squeeze_dim::<1>(0);
        let norms = squares.clamp_min(f32::MIN_POSITIVE).sqrt();
        Some(magnitude.val() / norms)
    }
}

/// `rows W`, off the autodiff graph.
fn rows_times_weight(rows: Tensor<2>, weight: &LinearWeight) -> Tensor<2> {
    let rows = rows.unsqueeze::<3>();
    let product = match weight {
        LinearWeight::Matrix(weight) => {
            nextword_kernels::linear(rows, weight.clone().without_autodiff(), None)
        }
        LinearWeight::Quantized(weight) => nextword_kernels::linear_quantized(rows, weight, None),
    };
    product.squeeze_dim::<2>(0)
}

/// The squared norms of the columns of `weight`, `[d_out]`, off the autodiff graph.
fn squared_norms(weight: &LinearWeight, device: &Device) -> Tensor<1> {
    let weight = match weight {
        LinearWeight::Matrix(weight) => weight.clone().without_autodiff(),
        LinearWeight::Quantized(weight) => {
            let data = TensorData::new(weight.dequantize(), weight.shape());
            Tensor::from_data(data, &device.clone().without_autodiff())
        }
    };
    (weight.clone() * weight).sum_dim(0).squeeze_dim::<1>(0)
}

/// The norms of the columns of `weight`, `[d_out]`: the first magnitudes.
pub(crate) fn column_norms(weight: &LinearWeight, device: &Device) -> Vec<f32> {
    to_f32_vec(squared_norms(weight, device).sqrt().into_data())
}

/// The first values of `A`, `[d_in, rank]`: uniform in ±1/sqrt(`d_in`), a function of `rng` and the index alone.
pub(crate) fn initial_a(rng: CounterRng, d_in: usize, rank: usize) -> Vec<f32> {
    let bound = 1.0 / (d_in as f64).sqrt();
    let value = |i| ((2.0 * rng.uniform(i) - 1.0) * bound) as f32;
    (0..(d_in * rank) as u64).map(value).collect()
}
