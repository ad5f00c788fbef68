//! Checks of an adapter against the configuration of its base model.

use std::collections::BTreeMap;

use super::config::copyable_parameters;
use super::{Adapter, linear_modules};
use crate::{LowRank, ModelConfig, ModelError};

impl Adapter {
    /// Checks that all parts of the adapter fit a model of `config`, and that all values are finite.
    ///
    /// # Errors
    /// [`ModelError::Adapter`] with the first part that does not.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        self.problem(config).map_or(Ok(()), |problem| {
            Err(ModelError::Adapter {
                problem,
                hint: "use the adapter with the model that it was trained on".to_string(),
            })
        })
    }

    fn problem(&self, config: &ModelConfig) -> Option<String> {
        let shapes: BTreeMap<_, _> = linear_modules(config).into_iter().collect();
        let module_problem = |(name, module): (&String, &LowRank)| {
            let Some(shape) = shapes.get(name) else {
                return Some(format!(
                    "`{name}` is not a linear layer of the model's blocks"
                ));
            };
            if module.magnitude.is_some() != self.config.use_dora {
                return Some(format!(
                    "`{name}` has magnitudes, or use_dora is set, but not both"
                ));
            }
            let problem = module.problem(*shape)?;
            Some(format!("`{name}`: {problem}"))
        };
        if self.modules.is_empty() && self.saved.is_empty() {
            return Some("the adapter is empty".to_string());
        }
        if let Some(problem) = self.modules.iter().find_map(module_problem) {
            return Some(problem);
        }
        let copyable = copyable_parameters(config);
        self.saved.iter().find_map(|(name, saved)| {
            let Some(shape) = copyable.get(name) else {
                return Some(format!(
                    "`{name}` is not a parameter of which an adapter can have a copy"
                ));
            };
            if saved.shape != *shape || saved.values.len() != shape.iter().product::<usize>() {
                return Some(format!(
                    "`{name}` has shape {:?} instead of {shape:?}",
                    saved.shape
                ));
            }
            not_finite(&saved.values).then(|| format!("`{name}` contains NaN or infinity"))
        })
    }
}

impl LowRank {
    /// The factor `A` or `B` of another length, or a rank or scale that is none.
    fn problem(&self, [d_in, d_out]: [usize; 2]) -> Option<String> {
        if [self.d_in, self.d_out] != [d_in, d_out] {
            let found = [self.d_in, self.d_out];
            return Some(format!(
                "maps {found:?} features instead of [{d_in}, {d_out}]"
            ));
        }
        if let Some(problem) = rank_problem(self.rank, [d_in, d_out]) {
            return Some(problem);
        }
        if !self.scale.is_finite() {
            return Some(format!("the scale is {}", self.scale));
        }
        let magnitude = self.magnitude.as_deref();
        let parts = [
            ("lora_a", &self.a[..], d_in * self.rank),
            ("lora_b", &self.b[..], self.rank * d_out),
            (
                "lora_magnitude",
                magnitude.unwrap_or_default(),
                magnitude.map_or(0, |_| d_out),
            ),
        ];
        parts.into_iter().find_map(|(part, values, len)| {
            if values.len() != len {
                return Some(format!(
                    "{part} has {} values instead of {len}",
                    values.len()
                ));
            }
            not_finite(values).then(|| format!("{part} contains NaN or infinity"))
        })
    }
}

/// The problem if `rank` is not possible for a matrix of this shape.
pub(super) fn rank_problem(rank: usize, [d_in, d_out]: [usize; 2]) -> Option<String> {
    let limit = d_in.min(d_out);
    (rank == 0 || rank > limit).then(|| format!("rank {rank} is not between 1 and {limit}"))
}

fn not_finite(values: &[f32]) -> bool {
    values.iter().any(|value| !value.is_finite())
}
