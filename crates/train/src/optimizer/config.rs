//! Which optimizer, with what numbers.

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// Which optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101).
    #[default]
    Adamw,
    /// Stochastic gradient descent, with momentum if asked for.
    Sgd,
    /// Muon (Jordan et al. 2024) for the matrices of the blocks, `AdamW` for everything else.
    Muon,
}

/// Which optimizer, with what numbers. The defaults are nanoGPT's for small models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which one.
    pub kind: OptimizerKind,
    /// Decay of the gradient's running average (`AdamW`).
    pub beta1: f64,
    /// Decay of the squared gradient's running average (`AdamW`).
    pub beta2: f64,
    /// Added to the denominator (`AdamW`).
    pub eps: f64,
    /// Share of each matrix, times the learning rate, taken off at every update. Vectors (biases,
    /// norms) never decay.
    pub weight_decay: f64,
    /// Momentum of SGD and Muon.
    pub momentum: f64,
    /// Muon's own peak learning rate; it follows the schedule's course.
    pub muon_learning_rate: f64,
    /// Gradients are scaled down to this global norm where they exceed it; 0 never clips.
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
                let problem = format!("{value} is not a rate");
                let hint = "use a number from 0.0 up to, but not, 1.0";
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
                let problem = format!("{value} is not a number of 0 or more");
                return Err(TrainError::config(
                    key,
                    problem,
                    "leave it out for the default",
                ));
            }
        }
        Ok(())
    }

    /// What changes the parameter at `path`.
    pub(crate) fn rule(&self, path: &str, shape: &[usize]) -> OptimizerKind {
        let muon = path.starts_with("blocks.") && shape.len() == 2;
        match self.kind {
            OptimizerKind::Muon if !muon => OptimizerKind::Adamw,
            kind => kind,
        }
    }
}
