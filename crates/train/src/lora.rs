//! Low-rank adaptation: the table `[lora]` of a configuration, its checks, and the defaults of such a run.

use nextword_model::{LoraConfig, ModelConfig, TargetModule, TargetModules, linear_modules};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::{OptimizerConfig, OptimizerKind, ScheduleConfig, TrainError};

/// Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): the base model's weights stay as they are, and the
/// run trains an update of rank `rank` for each target module. Without this table, all weights are trained.
///
/// ```
/// use nextword_train::parse_config;
///
/// let text = "
///     start_from = 'models/base'
///     data.path = 'support.txt'
///     [lora]
///     rank = 8
/// ";
/// let config = parse_config(text, "support.toml".as_ref(), &[])?;
/// let lora = config.lora.unwrap();
/// assert_eq!((lora.rank, lora.alpha), (8, 32.0));
/// assert_eq!(config.optimizer.weight_decay, 0.0); // a default of LoRA runs
/// # Ok::<(), nextword_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of the updates.
    pub rank: usize,
    /// The updates are scaled by `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`.
    pub alpha: f64,
    /// Dropout on the inputs of the updates.
    pub dropout: f64,
    /// The modules with an update: `all-linear` (all matrices of the blocks), `attention`, `feed-forward`, or
    /// a list of `query`, `key`, `value`, `output`, `gate`, `up` and `down`.
    pub target_modules: TargetModules,
    /// The first and the last block with updates, counted from 0; absent: all blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<[usize; 2]>,
    /// Rank-stabilized scaling (Kalajdzievski 2023, arXiv 2312.03732).
    pub use_rslora: bool,
    /// Weight-decomposed adaptation (Liu et al. 2024, arXiv 2402.09353).
    pub use_dora: bool,
    /// The learning rate of B divided by that of A (`LoRA+`, Hayou et al. 2024, arXiv 2402.12354).
    pub plus_ratio: f64,
    /// Modules that are trained in full besides: `token_embedding`, `head`, `norms`.
    pub modules_to_save: Vec<String>,
}

impl Default for LoraSettings {
    fn default() -> Self {
        Self::new(LoraConfig::default())
    }
}

/// Keys that a configuration leaves out and for which a `LoRA` run has defaults of its own; for the warmup, a run for a
/// number of epochs too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // One for each key.
pub struct UnsetKeys {
    /// `schedule.learning_rate`.
    pub learning_rate: bool,
    /// `schedule.min_learning_rate`.
    pub min_learning_rate: bool,
    /// `schedule.warmup_steps`.
    pub warmup_steps: bool,
    /// `optimizer.weight_decay`.
    pub weight_decay: bool,
    /// `optimizer.beta2`.
    pub beta2: bool,
}

impl UnsetKeys {
    /// The keys that are at the defaults of other runs of `steps` updates, for configurations that are not read from a file.
    ///
    /// ```
    /// use nextword_train::{RunConfig, UnsetKeys};
    ///
    /// let mut config = RunConfig::default();
    /// config.schedule.learning_rate = 5e-4;
    /// config.train.steps = 200;
    /// let unset = UnsetKeys::at_defaults(&config.schedule, &config.optimizer, config.train.steps);
    /// assert!(!unset.learning_rate && unset.weight_decay && unset.warmup_steps);
    /// ```
    pub fn at_defaults(schedule: &ScheduleConfig, optimizer: &OptimizerConfig, steps: u64) -> Self {
        let (defaults, optimizer_defaults) =
            (ScheduleConfig::default(), OptimizerConfig::default());
        let is_same = |value: f64, default: f64| value.to_bits() == default.to_bits();
        Self {
            learning_rate: is_same(schedule.learning_rate, defaults.learning_rate),
            min_learning_rate: is_same(schedule.min_learning_rate, defaults.min_learning_rate),
            // A configuration that was not read from a file has the warmup of a long run.
            warmup_steps: [ScheduleConfig::default_warmup(steps), defaults.warmup_steps]
                .contains(&schedule.warmup_steps),
            weight_decay: is_same(optimizer.weight_decay, optimizer_defaults.weight_decay),
            beta2: is_same(optimizer.beta2, optimizer_defaults.beta2),
        }
    }

    /// The keys that `config` leaves out.
    pub(crate) fn of(config: &Table) -> Self {
        let is_unset = |section: &str, key: &str| {
            let section = config.get(section).and_then(toml::Value::as_table);
            section.is_none_or(|section| !section.contains_key(key))
        };
        Self {
            learning_rate: is_unset("schedule", "learning_rate"),
            min_learning_rate: is_unset("schedule", "min_learning_rate"),
            warmup_steps: is_unset("schedule", "warmup_steps"),
            weight_decay: is_unset("optimizer", "weight_decay"),
            beta2: is_unset("optimizer", "beta2"),
        }
    }
}

impl LoraSettings {
    /// The settings of a run that trains an adapter with `config`.
    pub fn new(config: LoraConfig) -> Self {
        let LoraConfig {
            rank,
            alpha,
            dropout,
            target_modules,
            layers,
            use_rslora,
            use_dora,
            modules_to_save,
        } = config;
        Self {
            rank,
            alpha,
            dropout,
            target_modules,
            layers,
            use_rslora,
            use_dora,
            plus_ratio: 1.0,
            modules_to_save,
        }
    }

    /// What the model's adapter is built from.
    pub fn adapter_config(&self) -> LoraConfig {
        LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            target_modules: self.target_modules.clone(),
            layers: self.layers,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            modules_to_save: self.modules_to_save.clone(),
        }
    }

    /// Checks the values, before the model is known.
    pub(crate) fn validate(&self, optimizer: OptimizerKind) -> Result<(), TrainError> {
        self.adapter_config().validate()?;
        if !(self.plus_ratio.is_finite() && self.plus_ratio > 0.0) {
            return Err(TrainError::config(
                "lora.plus_ratio",
                format!(
                    "must be a finite number above 0, but is {}",
                    self.plus_ratio
                ),
                "1 is LoRA; LoRA+ uses 16",
            ));
        }
        if optimizer == OptimizerKind::Muon {
            return Err(TrainError::config(
                "optimizer.kind",
                "Muon makes updates of whole matrices orthogonal, which those of low-rank factors are not",
                "set optimizer.kind = \"adamw\" for a run with [lora]",
            ));
        }
        Ok(())
    }

    /// Checks that the targets exist in a model of `config` and that the rank is not above their sizes. Returns the
    /// number of parameters that the run trains.
    pub(crate) fn check_model(&self, config: &ModelConfig) -> Result<usize, TrainError> {
        let parameters = self.adapter_config().parameters(config)?;
        let TargetModules::List(targets) = &self.target_modules else {
            return Ok(parameters);
        };
        let available = available_targets(config);
        let available_names: Vec<_> = available.iter().map(|target| target.name()).collect();
        let missing = targets.iter().find(|target| !available.contains(target));
        match missing {
            Some(missing) => Err(TrainError::config(
                "lora.target_modules",
                format!(
                    "the blocks of the model in start_from do not have `{}`",
                    missing.name()
                ),
                format!("they have {}", available_names.join(", ")),
            )),
            None => Ok(parameters),
        }
    }
}

/// The linear layers that the blocks of a model have.
fn available_targets(config: &ModelConfig) -> Vec<TargetModule> {
    let modules = linear_modules(config);
    let exists = |target: &TargetModule| {
        let mut names = modules.iter().map(|(name, _)| name.rsplit('.').next());
        names.any(|name| name == Some(target.name()))
    };
    TargetModule::ALL.into_iter().filter(exists).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_ranks_are_checked_against_the_model() {
        let model = nextword_model::presets::shakespeare_char_cpu(65);
        let check = |change: fn(&mut LoraSettings)| {
            let mut settings = LoraSettings::default();
            change(&mut settings);
            settings.check_model(&model)
        };
        assert!(check(|_| {}).unwrap() > 0);
        let gate =
            check(|lora| lora.target_modules = TargetModules::List(vec![TargetModule::Gate]));
        let message = gate.unwrap_err().to_string();
        assert!(
            message.contains("lora.target_modules") && message.contains("query, key"),
            "{message}"
        );
        let message = check(|lora| lora.rank = 129).unwrap_err().to_string();
        assert!(
            message.contains("lora.rank: 129") && message.contains("128"),
            "{message}"
        );
        let message = check(|lora| lora.layers = Some([0, 4]))
            .unwrap_err()
            .to_string();
        assert!(message.contains("lora.layers"), "{message}");
    }
}
