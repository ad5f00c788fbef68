//! Weight initialization as in GPT-2, from a counter-based generator.
//!
//! Each parameter has its own random stream, named by its path, so that a seed gives the same weights
//! on every backend, and adding a layer does not change the others.

use std::sync::{Mutex, PoisonError};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::{CounterRng, ModelError, Transformer};

/// Number of values that one task computes.
const CHUNK: usize = 1 << 14;

/// Approximate number of basic operations of one value.
const OPS_PER_VALUE: usize = 64;

/// Weight initialization.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Standard deviation of all matrices; biases start at 0 and norm scales at 1.
    pub std: f64,
    /// Divide the standard deviation of the layers that write to the residual stream (attention
    /// output, feed-forward down) by `sqrt(2 * n_layers)` (GPT-2, Radford et al. 2019).
    pub scale_output: bool,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self {
            std: 0.02,
            scale_output: true,
        }
    }
}

impl InitConfig {
    pub(crate) fn validate(self) -> Result<(), ModelError> {
        if self.std.is_finite() && self.std >= 0.0 {
            return Ok(());
        }
        Err(ModelError::config(
            "init.std",
            format!("{} is not a valid standard deviation", self.std),
            "the usual value is 0.02",
        ))
    }
}

/// Initializes every matrix of `model` from `seed`.
pub(crate) fn initialize(model: Transformer, config: InitConfig, seed: u64) -> Transformer {
    let n_layers = model.config().n_layers;
    let mut mapper = Initializer {
        config,
        output_scale: 1.0 / (2.0 * n_layers as f64).sqrt(),
        rng: CounterRng::new(seed).named("init"),
        path: Vec::new(),
    };
    model.map(&mut mapper)
}

/// `len` normal values of standard deviation `std`, computed on all cores: each depends on its index only.
fn normal_values(len: usize, std: f64, rng: CounterRng) -> Vec<f32> {
    let mut values = vec![0.0; len];
    let chunks: Vec<_> = values.chunks_mut(CHUNK).map(Mutex::new).collect();
    nextword_kernels::parallel_for_each(chunks.len(), CHUNK * OPS_PER_VALUE, |number| {
        let mut chunk = chunks[number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (i, value) in chunk.iter_mut().enumerate() {
            *value = (std * rng.normal((number * CHUNK + i) as u64)) as f32;
        }
    });
    drop(chunks);
    values
}

struct Initializer {
    config: InitConfig,
    output_scale: f64,
    rng: CounterRng,
    path: Vec<String>,
}

impl ModuleMapper for Initializer {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D < 2 {
            return param; // Biases stay 0 and norm scales 1, as built.
        }
        let path = self.path.join(".");
        let writes_residual =
            path.ends_with("attention.output.weight") || path.ends_with("down.weight");
        let std = if self.config.scale_output && writes_residual {
            self.config.std * self.output_scale
        } else {
            self.config.std
        };
        let rng = self.rng.named(&path);
        param.map(|tensor| {
            let shape = tensor.dims();
            let len: usize = shape.iter().product();
            let values = normal_values(len, std, rng);
            Tensor::from_data(TensorData::new(values, shape), &tensor.device())
                .set_require_grad(tensor.is_require_grad())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_their_index_only() {
        let rng = CounterRng::new(3).named("test");
        let len = 3 * CHUNK + 5;
        let values = normal_values(len, 0.02, rng);
        let expected = (0..len as u64).map(|i| (0.02 * rng.normal(i)) as f32);
        assert!(values.iter().copied().eq(expected));
        assert_eq!(normal_values(7, 0.02, rng), values[..7]);
        assert!(normal_values(0, 0.02, rng).is_empty());
    }
}
