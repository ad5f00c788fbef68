//! Optimizer settings.

use nextword_model::weights;
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// The optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101).
    #[default]
    Adamw,
    /// Stochastic gradient descent, with momentum unless that is 0.
    Sgd,
    /// Muon (Jordan et al. 2024) for the matrices of the blocks, `AdamW` for everything else.
    Muon,
}

/// Optimizer settings. The defaults are nanoGPT's for small models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The optimizer.
    pub kind: OptimizerKind,
    /// Decay rate of the first moment (`AdamW`).
    pub beta1: f64,
    /// Decay rate of the second moment (`AdamW`).
    pub beta2: f64,
    /// Added to the denominator (`AdamW`).
    pub eps: f64,
    /// Weight decay of matrices, multiplied by the learning rate. Vectors (biases, norms) do not decay.
    pub weight_decay: f64,
    /// Momentum of SGD and Muon.
    pub momentum: f64,
    /// Muon's maximum learning rate; it follows the shape of the schedule.
    pub muon_learning_rate: f64,
    /// Maximum global gradient norm; 0 disables clipping.
    pub clip_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            momentum: 0.95,
            muon_learning_rate: 0.02,
            clip_norm: 1.0,
        }
    }
}

impl OptimizerConfig {
    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        for (key, value) in [
            ("optimizer.beta1", self.beta1),
            ("optimizer.beta2", self.beta2),
            ("optimizer.momentum", self.momentum),
        ] {
            if !(0.0..1.0).contains(&value) {
                let problem = format!("{value} is not a valid decay rate");
                let hint = "use a value of at least 0.0 and less than 1.0";
                return Err(TrainError::config(key, problem, hint));
            }
        }
        for (key, value) in [
            ("optimizer.eps", self.eps),
            ("optimizer.weight_decay", self.weight_decay),
            ("optimizer.muon_learning_rate", self.muon_learning_rate),
            ("optimizer.clip_norm", self.clip_norm),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                let problem = format!("{value} is negative or not finite");
                return Err(TrainError::config(
                    key,
                    problem,
                    "leave it out for the default",
                ));
            }
        }
        Ok(())
    }

    /// The optimizer that updates the parameter at `path`.
    pub(crate) fn kind_for(&self, path: &str, shape: &[usize]) -> OptimizerKind {
        let is_block_matrix = weights::is_in_block(path) && shape.len() == 2;
        match self.kind {
            OptimizerKind::Muon if !is_block_matrix => OptimizerKind::Adamw,
            kind => kind,
        }
    }
}
