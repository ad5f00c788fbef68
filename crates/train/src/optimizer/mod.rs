//! How gradients change weights.

mod config;
mod muon;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use nextword_kernels::{AdamwStep, Moments};
use nextword_model::Transformer;
use nextword_model::weights::NamedTensors;

pub use config::{OptimizerConfig, OptimizerKind};

use crate::Gradients;

/// An optimizer with its state: one or two numbers for each parameter.
///
/// Matrices (two axes) decay and vectors do not, as in GPT-2's training. `AdamW` is Loshchilov and
/// Hutter's (2017), with the arithmetic of `PyTorch`'s. The state lives on the device, in f32.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// Updates made.
    updates: u64,
    moments: BTreeMap<String, Moments>,
}

impl Optimizer {
    /// A fresh optimizer.
    pub fn new(config: OptimizerConfig) -> Self {
        Self {
            config,
            updates: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Numbers kept for each parameter by the optimizer of `config`.
    pub fn numbers_per_parameter(config: &OptimizerConfig) -> usize {
        match config.kind {
            // Muon's matrices keep one, the rest two as AdamW.
            OptimizerKind::Adamw | OptimizerKind::Muon => 2,
            OptimizerKind::Sgd => usize::from(config.momentum > 0.0),
        }
    }

    /// Changes the weights of `model` by `gradients`; `rate` is the schedule's learning rate and
    /// `peak` its highest.
    pub fn update(
        &mut self,
        model: Transformer,
        gradients: Gradients,
        rate: f64,
        peak: f64,
    ) -> Transformer {
        self.updates += 1;
        let rates = Rates {
            rate,
            share_of_peak: if peak > 0.0 { rate / peak } else { 0.0 },
            gradient_scale: gradients.scale(),
        };
        let mut mapper = Updater {
            gradients: gradients.into_map(),
            optimizer: self,
            rates,
            path: Vec::new(),
        };
        model.map(&mut mapper)
    }

    /// The state as named flat tensors: `NAME.first`, `NAME.second`.
    pub fn state(&self) -> NamedTensors {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (suffix, tensor) in [("first", &moments.first), ("second", &moments.second)] {
                if let Some(tensor) = tensor {
                    let values = nextword_model::weights::floats(tensor.to_data());
                    state.insert(format!("{name}.{suffix}"), (vec![values.len()], values));
                }
            }
        }
        state
    }

    /// The optimizer of `config` with a saved state after `updates` updates.
    pub fn restore(
        config: OptimizerConfig,
        updates: u64,
        state: NamedTensors,
        device: &Device,
    ) -> Self {
        let mut optimizer = Self::new(config);
        optimizer.updates = updates;
        for (key, (_, values)) in state {
            let Some((name, suffix)) = key.rsplit_once('.') else {
                continue;
            };
            let len = values.len();
            let tensor = Tensor::from_data(TensorData::new(values, [len]), device);
            let moments = optimizer.moments.entry(name.to_string()).or_default();
            match suffix {
                "first" => moments.first = Some(tensor),
                _ => moments.second = Some(tensor),
            }
        }
        optimizer
    }

    /// The new value of one parameter, flat.
    fn step(
        &mut self,
        path: &str,
        shape: &[usize],
        weight: Tensor<1>,
        gradient: Tensor<1>,
        rates: Rates,
    ) -> Tensor<1> {
        let decay = if shape.len() >= 2 {
            self.config.weight_decay
        } else {
            0.0
        };
        match self.config.rule(path, shape) {
            OptimizerKind::Adamw => self.adamw(path, weight, gradient, decay, rates),
            OptimizerKind::Sgd => {
                let gradient = gradient * rates.gradient_scale + weight.clone() * decay;
                weight - self.momentum(path, gradient) * rates.rate
            }
            OptimizerKind::Muon => {
                let rate = self.config.muon_learning_rate * rates.share_of_peak;
                let weight = weight * (1.0 - rate * decay);
                let direction = self.averaged(path, gradient * rates.gradient_scale);
                let [d_in, d_out] = [shape[0], shape[1]];
                let direction: Tensor<2> = direction.reshape([d_in, d_out]);
                weight - muon::orthogonalize(direction).reshape([d_in * d_out]) * rate
            }
        }
    }

    fn adamw(
        &mut self,
        path: &str,
        weight: Tensor<1>,
        gradient: Tensor<1>,
        decay: f64,
        rates: Rates,
    ) -> Tensor<1> {
        let step = AdamwStep {
            rate: rates.rate,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            number: self.updates,
            gradient_scale: rates.gradient_scale,
        };
        let moments = self.moments.entry(path.to_string()).or_default();
        nextword_kernels::adamw(weight, gradient, moments, decay, &step)
    }

    /// SGD's direction: the gradient, or with momentum its running sum.
    fn momentum(&mut self, path: &str, gradient: Tensor<1>) -> Tensor<1> {
        let momentum = self.config.momentum;
        if momentum == 0.0 {
            return gradient;
        }
        let moments = self.moments.entry(path.to_string()).or_default();
        let sum = match moments.first.take() {
            Some(sum) => sum * momentum + gradient,
            None => gradient,
        };
        moments.first = Some(sum.clone());
        sum
    }

    /// Muon's direction: Nesterov's look ahead on a running average.
    fn averaged(&mut self, path: &str, gradient: Tensor<1>) -> Tensor<1> {
        let momentum = self.config.momentum;
        let moments = self.moments.entry(path.to_string()).or_default();
        let fresh = gradient.clone() * (1.0 - momentum);
        let average = match moments.first.take() {
            Some(average) => average * momentum + fresh,
            None => fresh,
        };
        moments.first = Some(average.clone());
        gradient * (1.0 - momentum) + average * momentum
    }
}

struct Updater<'a> {
    optimizer: &'a mut Optimizer,
    gradients: BTreeMap<String, Tensor<1>>,
    rates: Rates,
    path: Vec<String>,
}

/// The numbers of one update that all parameters share.
#[derive(Clone, Copy, Debug)]
struct Rates {
    rate: f64,
    /// The learning rate as a share of its peak.
    share_of_peak: f64,
    /// Below 1 where the gradients' norm is clipped.
    gradient_scale: f64,
}

impl ModuleMapper for Updater<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let Some(gradient) = self.gradients.remove(&path) else {
            return param;
        };
        param.map(|tensor| {
            let shape = tensor.dims();
            let len = shape.iter().product::<usize>();
            let flat = tensor.inner().reshape([len]);
            let new = self
                .optimizer
                .step(&path, &shape, flat, gradient, self.rates);
            Tensor::from_inner(new.reshape(shape)).require_grad()
        })
    }
}
