//! The adapter of one linear layer, and what a model with adapters knows.

mod config;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use nextword_base::CounterRng;
use nextword_kernels::{DropoutMask, LinearWeight, LowRankUpdate, QuantizedMatrix};

pub use config::{LoraConfig, SAVED_MODULES, TargetModule, TargetModules};

/// The update of one linear layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LowRank {
    /// `[d_in, rank]`, row-major.
    pub a: Vec<f32>,
    /// `[rank, d_out]`, row-major.
    pub b: Vec<f32>,
    /// Columns of `a`, rows of `b`.
    pub rank: usize,
    /// Inputs of the layer.
    pub d_in: usize,
    /// Outputs of the layer.
    pub d_out: usize,
    /// Factor on `a b`: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scale: f32,
    /// `DoRA`'s magnitudes, `[d_out]`: the norm of each output unit's weights. Present with
    /// [`LoraConfig::use_dora`] only.
    pub magnitude: Option<Vec<f32>>,
}

/// What an adapted model knows besides its modules.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    pub(crate) config: LoraConfig,
    /// The base model's values, flat, of the parameters that the adapter has full copies of.
    pub(crate) base_values: BTreeMap<String, Tensor<1>>,
    /// The base model's token embedding, if it is quantized and the adapter has a copy of it.
    pub(crate) base_embedding: Option<QuantizedMatrix>,
    /// The same for the output layer.
    pub(crate) base_head: Option<QuantizedMatrix>,
}

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

    /// Factor on `A B`.
    pub(crate) fn scale(&self) -> f32 {
        self.scale
    }

    /// Probability of dropping an input in training.
    pub(crate) fn dropout(&self) -> f64 {
        self.dropout
    }

    /// The update with this dropout on its input.
    pub(crate) fn update(&self, dropout: Option<DropoutMask>) -> LowRankUpdate {
        LowRankUpdate {
            a: self.a.val(),
            b: self.b.val(),
            scale: self.scale,
            dropout,
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
pub(crate) fn column_norms(weight: &LinearWeight, device: &Device) -> Tensor<1> {
    squared_norms(weight, device).sqrt()
}

/// The first values of `A`, `[d_in, rank]`: uniform in ±1/sqrt(`d_in`), a function of `rng` and the index alone.
pub(crate) fn initial_a(rng: CounterRng, d_in: usize, rank: usize) -> Vec<f32> {
    let bound = 1.0 / (d_in as f64).sqrt();
    let value = |i| ((2.0 * rng.uniform(i) - 1.0) * bound) as f32;
    (0..(d_in * rank) as u64).map(value).collect()
}
