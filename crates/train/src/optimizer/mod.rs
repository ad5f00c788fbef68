//! The optimizers: `AdamW`, SGD and Muon.

mod config;
mod muon;
mod shards;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use nextword_kernels::{AdamwStep, Moments};
use nextword_model::weights::{self, TensorFile};
use nextword_model::{ModelError, Transformer};

pub use config::{OptimizerConfig, OptimizerKind};
pub(crate) use shards::{shards_of, with_weights};

use crate::Gradients;

/// An optimizer and its state: up to two values per parameter.
///
/// Weight decay applies to matrices but not to vectors, as in GPT-2's training. `AdamW` (Loshchilov
/// and Hutter 2017) uses the same arithmetic as `PyTorch`. The state is on the device, in f32.
///
/// # Example
///
/// ```
/// use burn::{module::Module, tensor::Device};
/// use nextword_data::TokenBatch;
/// use nextword_model::presets;
/// use nextword_train::{Optimizer, OptimizerConfig, forward_backward};
///
/// let mut model = presets::statquest(5).init(&Device::flex(), 7)?.train();
/// let mut optimizer = Optimizer::new(OptimizerConfig::default());
/// let batch = TokenBatch { batch: 1, seq: 3, inputs: vec![0, 1, 2], targets: vec![1, 2, 4], ..TokenBatch::default() };
/// let mut losses = Vec::new();
/// for step in 0..20 {
///     let (loss, gradients) = forward_backward(&model, &[batch.clone()], 7, step, false);
///     losses.push(loss.into_scalar::<f32>());
///     model = optimizer.update(model, gradients, 0.1, 0.1);
/// }
/// assert!(losses[19] < losses[0] / 2.0);
/// assert_eq!(Optimizer::state_per_parameter(&OptimizerConfig::default()), 2); // AdamW's moments
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// The learning rate of an adapter's B divided by that of all other parameters.
    plus_ratio: f64,
    /// Updates made so far.
    updates: u64,
    moments: BTreeMap<String, Moments>,
}

impl Optimizer {
    /// Creates an optimizer without state.
    pub fn new(config: OptimizerConfig) -> Self {
        Self {
            config,
            plus_ratio: 1.0,
            updates: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Updates the matrices B of an adapter with `ratio` times the learning rate (`LoRA+`).
    ///
    /// ```
    /// use nextword_train::{Optimizer, OptimizerConfig};
    ///
    /// let optimizer = Optimizer::new(OptimizerConfig::default()).with_plus_ratio(16.0);
    /// assert_eq!(optimizer.learning_rate_factor("blocks.0.attention.query.lora.b"), 16.0);
    /// assert_eq!(optimizer.learning_rate_factor("blocks.0.attention.query.lora.a"), 1.0);
    /// ```
    #[must_use]
    pub fn with_plus_ratio(self, ratio: f64) -> Self {
        Self {
            plus_ratio: ratio,
            ..self
        }
    }

    /// The factor on the learning rate of the parameter at `path`.
    pub fn learning_rate_factor(&self, path: &str) -> f64 {
        if path.ends_with(".lora.b") {
            self.plus_ratio
        } else {
            1.0
        }
    }

    /// Number of state values per parameter.
    pub fn state_per_parameter(config: &OptimizerConfig) -> usize {
        match config.kind {
            // Muon has one for the matrices of blocks and two, as AdamW, for all other parameters.
            OptimizerKind::Adamw | OptimizerKind::Muon => 2,
            OptimizerKind::Sgd => usize::from(config.momentum > 0.0),
        }
    }

    /// Updates the weights of `model`. `lr` is the learning rate of this update and `max_lr` the maximum
    /// of the schedule.
    pub fn update(
        &mut self,
        model: Transformer,
        gradients: Gradients,
        lr: f64,
        max_lr: f64,
    ) -> Transformer {
        let params = self.next_update(&gradients, lr, max_lr);
        let mut mapper = Updater {
            gradients: gradients.into_map(),
            optimizer: self,
            params,
            path: Vec::new(),
        };
        model.map(&mut mapper)
    }

    /// Counts an update, and returns the values that its parameters share.
    fn next_update(&mut self, gradients: &Gradients, lr: f64, max_lr: f64) -> UpdateParams {
        self.updates += 1;
        UpdateParams {
            lr,
            lr_fraction: if max_lr > 0.0 { lr / max_lr } else { 0.0 },
            gradient_scale: gradients.scale(),
        }
    }

    /// The optimizer without its moments.
    pub(crate) fn without_moments(&self) -> Self {
        Self {
            moments: BTreeMap::new(),
            ..self.clone()
        }
    }

    /// The state as flat tensors on the device, named `NAME.first` and `NAME.second`.
    pub fn state(&self) -> BTreeMap<String, &Tensor<1>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (suffix, tensor) in [("first", &moments.first), ("second", &moments.second)] {
                if let Some(tensor) = tensor {
                    state.insert(format!("{name}.{suffix}"), tensor);
                }
            }
        }
        state
    }

    /// Sets the number of updates made so far.
    pub(crate) fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Sets the tensor `key` of the [`state`](Self::state).
    pub(crate) fn set_moment(&mut self, key: &str, tensor: Tensor<1>) {
        let Some((name, suffix)) = key.rsplit_once('.') else {
            return;
        };
        let moments = self.moments.entry(name.to_string()).or_default();
        match suffix {
            "first" => moments.first = Some(tensor),
            _ => moments.second = Some(tensor),
        }
    }

    /// Names and lengths of the tensors of the [`state`](Self::state).
    pub(crate) fn state_tensors(&self) -> Vec<(String, usize)> {
        let state = self.state().into_iter();
        state
            .map(|(name, tensor)| (name, tensor.dims()[0]))
            .collect()
    }

    /// The values of tensor `key` of the [`state`](Self::state); empty if there is none.
    pub(crate) fn state_values(&self, key: &str) -> Vec<f32> {
        let tensor = key.rsplit_once('.').and_then(|(name, suffix)| {
            let moments = self.moments.get(name)?;
            match suffix {
                "first" => moments.first.as_ref(),
                _ => moments.second.as_ref(),
            }
        });
        tensor.map_or_else(Vec::new, |tensor| weights::to_f32_vec(tensor.to_data()))
    }

    /// Restores an optimizer from its [`state`](Self::state) after `updates` updates. Tensors are read
    /// one at a time.
    ///
    /// # Errors
    /// [`ModelError`] if a tensor cannot be read, or does not have a float type.
    pub fn restore(
        config: OptimizerConfig,
        updates: u64,
        state: &TensorFile,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut optimizer = Self::new(config);
        optimizer.updates = updates;
        for key in state.names() {
            let values = state.values(key)?;
            let len = values.len();
            let tensor = Tensor::from_data(TensorData::new(values, [len]), device);
            optimizer.set_moment(key, tensor);
        }
        Ok(optimizer)
    }

    /// Returns the new value of one parameter, flat.
    fn step(
        &mut self,
        path: &str,
        shape: &[usize],
        weight: Tensor<1>,
        gradient: Tensor<1>,
        params: UpdateParams,
    ) -> Tensor<1> {
        let params = UpdateParams {
            lr: params.lr * self.learning_rate_factor(path),
            ..params
        };
        let decay = if shape.len() >= 2 {
            self.config.weight_decay
        } else {
            0.0
        };
        match self.config.kind_for(path, shape) {
            OptimizerKind::Adamw => self.adamw(path, weight, gradient, decay, params),
            OptimizerKind::Sgd => {
                let gradient = gradient * params.gradient_scale + weight.clone() * decay;
                weight - self.momentum(path, gradient) * params.lr
            }
            OptimizerKind::Muon => {
                let lr = self.config.muon_learning_rate * params.lr_fraction;
                let weight = weight * (1.0 - lr * decay);
                let direction = self.nesterov(path, gradient * params.gradient_scale);
                let [d_in, d_out] = [shape[0], shape[1]];
                let direction: Tensor<2> = direction.reshape([d_in, d_out]);
                weight - muon::orthogonalize(direction).reshape([d_in * d_out]) * lr
            }
        }
    }

    fn adamw(
        &mut self,
        path: &str,
        weight: Tensor<1>,
        gradient: Tensor<1>,
        decay: f64,
        params: UpdateParams,
    ) -> Tensor<1> {
        let step = AdamwStep {
            lr: params.lr,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            step: self.updates,
            gradient_scale: params.gradient_scale,
        };
        let moments = self.moments.entry(path.to_string()).or_default();
        nextword_kernels::adamw(weight, gradient, moments, decay, &step)
    }

    /// The direction of SGD: the gradient, or the momentum buffer.
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

    /// The direction of Muon: Nesterov momentum on an exponential moving average.
    fn nesterov(&mut self, path: &str, gradient: Tensor<1>) -> Tensor<1> {
        let momentum = self.config.momentum;
        let moments = self.moments.entry(path.to_string()).or_default();
        let weighted = gradient.clone() * (1.0 - momentum);
        let average = match moments.first.take() {
            Some(average) => average * momentum + weighted,
            None => weighted,
        };
        moments.first = Some(average.clone());
        gradient * (1.0 - momentum) + average * momentum
    }
}

struct Updater<'a> {
    optimizer: &'a mut Optimizer,
    gradients: BTreeMap<String, Tensor<1>>,
    params: UpdateParams,
    path: Vec<String>,
}

/// The values of one update that all parameters share.
#[derive(Clone, Copy, Debug)]
struct UpdateParams {
    lr: f64,
    /// The learning rate divided by the maximum of the schedule.
    lr_fraction: f64,
    /// Factor from gradient clipping, at most 1.
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
            let updated = self
                .optimizer
                .step(&path, &shape, flat, gradient, self.params);
            Tensor::from_inner(updated.reshape(shape)).require_grad()
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nextword_data::TokenBatch;
    use nextword_model::{Adapter, DeviceName, LoraConfig, presets};

    use super::*;
    use crate::forward_backward;

    /// An adapter after two updates with this ratio of learning rates.
    fn trained(ratio: f64) -> Adapter {
        let device = DeviceName::Flex.open().unwrap();
        let base = presets::shakespeare_char_cpu(65).init(&device, 1).unwrap();
        let lora = LoraConfig {
            rank: 2,
            ..LoraConfig::default()
        };
        let mut model = base.with_new_adapter(&lora, 7).unwrap().train();
        let config = OptimizerConfig {
            kind: OptimizerKind::Sgd,
            momentum: 0.0,
            weight_decay: 0.0,
            ..OptimizerConfig::default()
        };
        let mut optimizer = Optimizer::new(config).with_plus_ratio(ratio);
        let batch = TokenBatch {
            batch: 1,
            seq: 3,
            inputs: vec![0, 1, 2],
            targets: vec![1, 2, 4],
            ..TokenBatch::default()
        };
        let (_, gradients) = forward_backward(&model, &[batch], 7, 0, false);
        model = optimizer.update(model, gradients, 0.1, 0.1);
        model.valid().adapter().unwrap()
    }

    #[test]
    fn the_ratio_of_lora_plus_scales_updates_of_b_alone() {
        let (one, four) = (trained(1.0), trained(4.0));
        let mut changed = 0;
        for (name, module) in &one.modules {
            let other = &four.modules[name];
            assert_eq!(module.a, other.a, "{name}");
            for (b, scaled) in module.b.iter().zip(&other.b) {
                assert!((4.0 * b - scaled).abs() <= 1e-6 * scaled.abs(), "{name}");
                changed += usize::from(*b != 0.0);
            }
        }
        assert!(changed > 0);
    }
}
