//! The modules and parameters that the settings of an adapter select in a model.

use std::collections::BTreeMap;

use crate::weights::{is_in_block, layout};
use crate::{LoraConfig, ModelConfig, ModelError, TargetModule};

/// The linear layers of the blocks of `config`: paths without `.weight`, and shapes, `[d_in, d_out]`.
pub fn linear_modules(config: &ModelConfig) -> Vec<(String, [usize; 2])> {
    let matrices = layout(config).into_iter().filter_map(|(name, shape)| {
        let name = name.strip_suffix(".weight")?;
        let [d_in, d_out] = shape[..].try_into().ok()?;
        is_in_block(name).then(|| (name.to_string(), [d_in, d_out]))
    });
    matrices.collect()
}

/// The parameters of `config` of which an adapter may have a full copy, and their shapes: all except the matrices
/// that get low-rank updates.
pub(super) fn copyable_parameters(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut parameters: BTreeMap<_, _> = layout(config).into_iter().collect();
    for (name, _) in linear_modules(config) {
        parameters.remove(&format!("{name}.weight"));
    }
    parameters
}

/// The block and the kind of the linear layer `name`.
fn parts(name: &str) -> Option<(usize, TargetModule)> {
    let name = name.strip_prefix("encoder.").unwrap_or(name);
    let layer = name.strip_prefix("blocks.")?.split('.').next()?;
    let module = TargetModule::named(name.rsplit('.').next()?)?;
    Some((layer.parse().ok()?, module))
}

impl LoraConfig {
    /// The linear layers of `config` that get an adapter: paths and shapes, `[d_in, d_out]`.
    ///
    /// # Errors
    /// [`ModelError::Lora`] if a value is invalid, no layer is selected, or the rank exceeds a dimension of one.
    pub fn modules(&self, config: &ModelConfig) -> Result<Vec<(String, [usize; 2])>, ModelError> {
        self.validate()?;
        let [first, last] = self
            .layers
            .unwrap_or([0, config.n_layers.saturating_sub(1)]);
        if first > last || last >= config.n_layers {
            let problem = format!("[{first}, {last}] is not a range of blocks");
            let hint = format!(
                "the first and the last block of {}, counted from 0",
                config.n_layers
            );
            return Err(ModelError::lora("layers", problem, hint));
        }
        let all = linear_modules(config);
        let is_target = |name: &str| {
            parts(name).is_some_and(|(layer, module)| {
                let is_in_range = self.layers.is_none() || (first..=last).contains(&layer);
                is_in_range && self.target_modules.contains(module)
            })
        };
        let targets = all.iter().filter(|(name, _)| is_target(name));
        let targets: Vec<_> = targets.cloned().collect();
        if targets.is_empty() {
            let known = TargetModule::ALL.into_iter().filter(|module| {
                all.iter()
                    .any(|(name, _)| parts(name).is_some_and(|(_, found)| found == *module))
            });
            let known: Vec<_> = known.map(TargetModule::name).collect();
            return Err(ModelError::lora(
                "target_modules",
                "the model has none of these layers",
                format!("its blocks have {}", known.join(", ")),
            ));
        }
        let mut limits = targets
            .iter()
            .map(|(name, [d_in, d_out])| (name, *d_in.min(d_out)));
        if let Some((name, limit)) = limits.find(|(_, limit)| self.rank > *limit) {
            let problem = format!(
                "{} exceeds the smaller dimension of `{name}`, {limit}",
                self.rank
            );
            return Err(ModelError::lora("rank", problem, "use a smaller rank"));
        }
        Ok(targets)
    }

    /// The parameters of `config` of which a full copy is trained: names and shapes as in a weights file.
    ///
    /// # Errors
    /// [`ModelError::Lora`] if the model does not have such a part.
    pub fn saved_parameters(
        &self,
        config: &ModelConfig,
    ) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
        self.validate()?;
        let is_part = |part: &str, name: &str| match part {
            "norms" => name.contains("norm."),
            _ => name.split('.').next() == Some(part),
        };
        let layout = layout(config);
        for part in &self.modules_to_save {
            if part == "head" && config.tied_head {
                let problem = "the output layer shares the weights of the token embedding";
                let hint = "use token_embedding instead of head";
                return Err(ModelError::lora("modules_to_save", problem, hint));
            }
            if !layout.iter().any(|(name, _)| is_part(part, name)) {
                let problem = format!("the model does not have `{part}`");
                let hint = "leave it out";
                return Err(ModelError::lora("modules_to_save", problem, hint));
            }
        }
        let saved = layout
            .into_iter()
            .filter(|(name, _)| self.modules_to_save.iter().any(|part| is_part(part, name)));
        Ok(saved.collect())
    }

    /// Number of parameters of an adapter of a model of `config`.
    ///
    /// # Errors
    /// As [`modules`](Self::modules) and [`saved_parameters`](Self::saved_parameters).
    ///
    /// ```
    /// use nextword_model::{LoraConfig, TargetModules, presets};
    ///
    /// let target_modules = TargetModules::Attention;
    /// let config = LoraConfig { rank: 8, target_modules, ..LoraConfig::default() };
    /// let parameters = config.parameters(&presets::gpt2(12, 12, 768))?;
    /// assert_eq!(parameters, 12 * 4 * 8 * (768 + 768));
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn parameters(&self, config: &ModelConfig) -> Result<usize, ModelError> {
        let modules = self.modules(config)?.into_iter();
        let modules = modules.map(|(_, [d_in, d_out])| {
            self.rank * (d_in + d_out) + if self.use_dora { d_out } else { 0 }
        });
        let saved = self.saved_parameters(config)?.into_iter();
        let saved = saved.map(|(_, shape)| shape.iter().product::<usize>());
        Ok(modules.chain(saved).sum())
    }
}
