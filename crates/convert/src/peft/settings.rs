//! Settings of nextword for an adapter of PEFT.

use std::collections::BTreeSet;

use nextword_model::{
    Adapter, LoraConfig, ModelConfig, SAVED_MODULES, TargetModule, TargetModules, linear_modules,
};

use super::config::PeftConfig;

/// The settings that describe `adapter`, of a model of `base`. Exact ranks and scales are those of its modules.
pub(super) fn settings(adapter: &Adapter, config: &PeftConfig, base: &ModelConfig) -> LoraConfig {
    let (alpha, rank) = config.defaults();
    let layers: BTreeSet<usize> = adapter
        .modules
        .keys()
        .filter_map(|name| layer(name))
        .collect();
    let range = layers.first().zip(layers.last());
    let range = range.map(|(first, last)| [*first, *last]);
    let has_part = |part: &&str| {
        let mut names = adapter.saved.keys();
        names.any(|name| match *part {
            "norms" => name.contains("norm."),
            part => name.split('.').next() == Some(part),
        })
    };
    let saved = SAVED_MODULES.iter().filter(|part| has_part(part));
    LoraConfig {
        rank,
        alpha,
        dropout: config.dropout,
        target_modules: target_modules(adapter, base),
        layers: range.filter(|[first, last]| last - first + 1 < base.n_layers),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        modules_to_save: saved.map(ToString::to_string).collect(),
    }
}

fn layer(module: &str) -> Option<usize> {
    let module = module.strip_prefix("encoder.").unwrap_or(module);
    module
        .strip_prefix("blocks.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn target_modules(adapter: &Adapter, base: &ModelConfig) -> TargetModules {
    let ends_with =
        |name: &str, module: &TargetModule| name.rsplit('.').next() == Some(module.name());
    let all: Vec<String> = linear_modules(base)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let kinds = TargetModule::ALL.into_iter();
    let kinds = kinds.filter(|kind| all.iter().any(|name| ends_with(name, kind)));
    let (used, unused): (Vec<_>, Vec<_>) =
        kinds.partition(|kind| adapter.modules.keys().any(|name| ends_with(name, kind)));
    if unused.is_empty() {
        TargetModules::AllLinear
    } else {
        TargetModules::List(used)
    }
}
