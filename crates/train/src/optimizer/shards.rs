//! Updating a part of each parameter.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use nextword_kernels::SQUARES_CHUNK;
use nextword_model::{Transformer, weights};
use nextword_parallel::{ShardedParameter, Shards};

use super::{Optimizer, OptimizerConfig, OptimizerKind, UpdateParams};
use crate::Gradients;

/// How `ranks` ranks share the moments of the trained parameters of `model`, which is on an autodiff device. The
/// matrices that Muon updates are not divided: it needs all of their values.
pub(crate) fn shards_of(model: &Transformer, config: &OptimizerConfig, ranks: usize) -> Shards {
    let mut visitor = TrainedParameters {
        config,
        path: Vec::new(),
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    Shards::new(&visitor.found, SQUARES_CHUNK, ranks)
}

struct TrainedParameters<'a> {
    config: &'a OptimizerConfig,
    path: Vec<String>,
    found: Vec<ShardedParameter>,
}

impl ModuleVisitor for TrainedParameters<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if !tensor.is_require_grad() {
            return;
        }
        let (name, shape) = (self.path.join("."), tensor.dims());
        let kind = self.config.kind_for(&name, &shape);
        self.found.push(ShardedParameter {
            len: shape.iter().product(),
            state_per_value: match kind {
                OptimizerKind::Adamw => 2,
                OptimizerKind::Sgd | OptimizerKind::Muon => 1,
            },
            is_whole: kind == OptimizerKind::Muon,
            name,
        });
    }
}

impl Optimizer {
    /// Makes the update of one rank: of the values of `model` whose moments it has, with their `gradients`. Returns their
    /// new values by name.
    pub(crate) fn update_shard(
        &mut self,
        model: &Transformer,
        gradients: Gradients,
        (shards, rank): (&Shards, usize),
        lr: f64,
        max_lr: f64,
    ) -> BTreeMap<String, Vec<f32>> {
        let params = self.next_update(&gradients, lr, max_lr);
        let mut updater = ShardUpdater {
            optimizer: self,
            gradients,
            shards,
            rank,
            params,
            path: Vec::new(),
            updated: BTreeMap::new(),
        };
        model.visit(&mut updater);
        updater.updated
    }
}

struct ShardUpdater<'a> {
    optimizer: &'a mut Optimizer,
    gradients: Gradients,
    shards: &'a Shards,
    rank: usize,
    params: UpdateParams,
    path: Vec<String>,
    updated: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for ShardUpdater<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        let Some(gradient) = self.gradients.remove(&path) else {
            return;
        };
        let tensor = param.val().inner();
        let shape = tensor.dims();
        let flat: Tensor<1> = tensor.reshape([shape.iter().product::<usize>()]);
        let own = flat.slice([self.shards.range(&path, self.rank)]);
        let updated = self
            .optimizer
            .step(&path, &shape, own, gradient, self.params);
        let values = weights::to_f32_vec(updated.into_data());
        self.updated.insert(path, values);
    }
}

/// Replaces the values of the parameters in `values`.
pub(crate) fn with_weights(model: Transformer, values: BTreeMap<String, Vec<f32>>) -> Transformer {
    model.map(&mut WeightSetter {
        values,
        path: Vec::new(),
    })
}

struct WeightSetter {
    values: BTreeMap<String, Vec<f32>>,
    path: Vec<String>,
}

impl ModuleMapper for WeightSetter {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.values.remove(&self.path.join(".")) else {
            return param;
        };
        param.map(|tensor| {
            let (shape, device) = (tensor.dims(), tensor.device().without_autodiff());
            let data = TensorData::new(values, shape);
            Tensor::from_inner(Tensor::from_data(data, &device)).require_grad()
        })
    }
}
