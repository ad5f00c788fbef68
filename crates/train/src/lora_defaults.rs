//! The defaults of runs with `[lora]`, where the configuration leaves keys out.

use crate::schedule::finetuning_warmup;
use crate::{Optimizer, RunConfig, TrainError};

/// Maximum learning rates, each with the minimum number of parameters of the base model.
const LEARNING_RATES: [(usize, f64); 3] = [(300_000_000, 2e-4), (10_000_001, 1e-3), (0, 2e-3)];

/// The second-moment decay of `LoRA` runs.
const BETA2: f64 = 0.999;

/// The maximum learning rate of an adapter of a model with this number of parameters.
fn adapter_learning_rate(parameters: usize) -> f64 {
    let mut by_size = LEARNING_RATES.iter();
    let found = by_size.find(|(min_parameters, _)| parameters >= *min_parameters);
    found.map_or(1e-3, |(_, lr)| *lr)
}

impl RunConfig {
    /// Gives the keys that the configuration leaves out the defaults of a `LoRA` run: no weight decay,
    /// `beta2 = 0.999`, a warmup of a twentieth of the steps (at least 5), and a learning rate that depends on
    /// the size of the base model (2e-3 up to 10 million parameters, 1e-3 below 300 million, else 2e-4), a tenth
    /// of it at the end. The warmup of a run in epochs follows when its steps are known. Does nothing without `[lora]`.
    ///
    /// `parameters` is the number of parameters of the base model, if it is known already.
    pub fn apply_lora_defaults(&mut self, parameters: Option<usize>) {
        if self.lora.is_none() {
            return;
        }
        let unset = self.unset;
        if unset.weight_decay {
            self.optimizer.weight_decay = 0.0;
        }
        if unset.beta2 {
            self.optimizer.beta2 = BETA2;
        }
        if unset.learning_rate
            && let Some(parameters) = parameters
        {
            self.schedule.learning_rate = adapter_learning_rate(parameters);
        }
        if unset.min_learning_rate {
            self.schedule.min_learning_rate = self.schedule.learning_rate / 10.0;
        }
        if unset.warmup_steps && self.train.epochs.is_none() {
            self.schedule.warmup_steps = finetuning_warmup(self.train.steps);
        }
    }

    /// Gives a run on preferences the learning rate that it leaves out: a twentieth of that of supervised training, and for
    /// all weights a tenth of that of an adapter. `parameters` is the number of parameters of the model that it starts
    /// from.
    pub(crate) fn apply_preference_defaults(&mut self, parameters: usize) {
        if self.preferences.is_none() || !self.unset.learning_rate {
            return;
        }
        let divisor = if self.lora.is_some() { 20.0 } else { 200.0 };
        self.schedule.learning_rate = adapter_learning_rate(parameters) / divisor;
        if self.unset.min_learning_rate {
            self.schedule.min_learning_rate = self.schedule.learning_rate / 10.0;
        }
    }

    /// An optimizer without state.
    pub(crate) fn new_optimizer(&self) -> Optimizer {
        self.with_plus_ratio(Optimizer::new(self.optimizer))
    }

    /// `optimizer` with the learning rates of this run.
    pub(crate) fn with_plus_ratio(&self, optimizer: Optimizer) -> Optimizer {
        let ratio = self.lora.as_ref().map_or(1.0, |lora| lora.plus_ratio);
        optimizer.with_plus_ratio(ratio)
    }

    /// The error of `[lora]` without a model to adapt.
    pub(crate) fn check_lora_base(&self) -> Result<(), TrainError> {
        if self.lora.is_some() && self.start_from.is_none() {
            return Err(TrainError::config(
                "lora",
                "there is nothing to adapt without a base model",
                "set start_from to a model folder, a run folder or a GGUF file, or remove [lora]",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{UnsetKeys, parse_config, to_toml};

    fn parse(text: &str) -> Result<RunConfig, TrainError> {
        parse_config(text, Path::new("x.toml"), &[])
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    const LORA: &str = "start_from = 'base'\ndata.path = 'x.txt'\n";

    #[test]
    fn keys_that_are_left_out_get_the_defaults_of_lora() {
        let mut config = parse(&format!("{LORA}[lora]\n[train]\nsteps = 400\n")).unwrap();
        config.apply_lora_defaults(Some(135_000_000));
        let (schedule, optimizer) = (config.schedule, config.optimizer);
        assert!((schedule.learning_rate - 1e-3).abs() < 1e-12);
        assert!((schedule.min_learning_rate - 1e-4).abs() < 1e-12);
        assert_eq!(schedule.warmup_steps, 20);
        assert!(optimizer.weight_decay.abs() < 1e-12 && (optimizer.beta2 - 0.999).abs() < 1e-12);
        for (parameters, expected) in [
            (1, 2e-3),
            (10_000_000, 2e-3),
            (299_999_999, 1e-3),
            (300_000_000, 2e-4),
        ] {
            config.apply_lora_defaults(Some(parameters));
            let found = config.schedule.learning_rate;
            assert!((found - expected).abs() < 1e-12, "{parameters}: {found}");
        }
    }

    #[test]
    fn keys_that_are_set_stay() {
        let text = format!(
            "{LORA}[lora]\n[schedule]\nlearning_rate = 5e-5\nwarmup_steps = 3\n\
             [optimizer]\nweight_decay = 0.1\nbeta2 = 0.99\n"
        );
        let mut config = parse(&text).unwrap();
        config.apply_lora_defaults(Some(1000));
        assert!((config.schedule.learning_rate - 5e-5).abs() < 1e-12);
        // Not 1e-4, which would be above the maximum.
        assert!((config.schedule.min_learning_rate - 5e-6).abs() < 1e-12);
        assert_eq!(config.schedule.warmup_steps, 3);
        assert!((config.optimizer.weight_decay - 0.1).abs() < 1e-12);
        assert!((config.optimizer.beta2 - 0.99).abs() < 1e-12);
    }

    #[test]
    fn runs_without_lora_keep_their_defaults() {
        let mut config = parse(LORA).unwrap();
        config.apply_lora_defaults(Some(1000));
        let defaults = RunConfig::default();
        assert_eq!(config.schedule, defaults.schedule);
        assert_eq!(config.optimizer, defaults.optimizer);
    }

    #[test]
    fn short_runs_have_a_warmup_that_fits() {
        for (steps, warmup) in [(1, 0), (5, 0), (6, 5), (99, 5), (200, 10)] {
            let text = format!("{LORA}[lora]\n[train]\nsteps = {steps}\n");
            assert_eq!(
                parse(&text).unwrap().schedule.warmup_steps,
                warmup,
                "{steps}"
            );
        }
    }

    #[test]
    fn a_configuration_with_lora_survives_its_file() {
        let text = format!(
            "{LORA}[lora]\nrank = 4\nalpha = 8.0\ntarget_modules = ['query', 'value']\nlayers = [1, 2]\n\
             use_rslora = true\nplus_ratio = 16.0\nmodules_to_save = ['norms']\n"
        );
        let mut config = parse(&text).unwrap();
        // A run names the tokenizer of its base.
        config.data.tokenizer.file = Some("base/tokenizer.json".into());
        let stored = parse(&to_toml(&config).unwrap()).unwrap();
        assert_eq!(stored.unset, UnsetKeys::default()); // All keys are in the file.
        assert_eq!(
            RunConfig {
                unset: config.unset,
                ..stored
            },
            config
        );
    }

    #[test]
    fn mistakes_are_named_with_their_key() {
        let with = |lora: &str| error(&format!("{LORA}[lora]\n{lora}\n"));
        for (lora, parts) in [
            ("rank = 0", &["lora.rank", "hint"][..]),
            ("alpha = -1.0", &["lora.alpha"]),
            ("dropout = 1.0", &["lora.dropout"]),
            ("plus_ratio = 0.0", &["lora.plus_ratio", "LoRA+"]),
            (
                "modules_to_save = ['norm']",
                &["lora.modules_to_save", "norms"],
            ),
            (
                "target_modules = 'q_proj'",
                &["q_proj", "query, key, value"],
            ),
            ("ranks = 3", &["unknown key `ranks`", "`rank`"]),
            ("[optimizer]\nkind = 'muon'", &["optimizer.kind", "adamw"]),
        ] {
            let message = with(lora);
            for part in parts {
                assert!(message.contains(part), "{part} is missing from {message}");
            }
        }
        let message = error("data.path = 'x.txt'\n[lora]\n");
        assert!(
            message.starts_with("lora: ") && message.contains("start_from"),
            "{message}"
        );
    }
}
