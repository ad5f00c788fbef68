//! `adapter_config.json` and `README.md` of an exported adapter.

use std::collections::{BTreeMap, BTreeSet};

use nextword_model::{Architecture, LoraConfig, ModelCard};
use serde_json::{Map, Value, json};

use crate::low_rank::{ForeignLowRank, alpha};

/// What an exported adapter consists of.
pub(super) struct Written<'a> {
    pub(super) config: &'a LoraConfig,
    /// That of the base model.
    pub(super) architecture: Architecture,
    /// The name of the base model.
    pub(super) base: String,
    /// By module.
    pub(super) updates: Vec<(&'a str, &'a ForeignLowRank)>,
    /// Names of all matrices of the blocks of the base model.
    pub(super) matrices: Vec<&'a str>,
    /// The setting `bias`.
    pub(super) bias: &'static str,
    /// Whether the base stores matrices as `[d_in, d_out]`.
    pub(super) has_conv1d: bool,
    pub(super) modules_to_save: BTreeSet<String>,
    /// Whether these are a tied embedding and output layer.
    pub(super) ties_weights: bool,
}

impl Written<'_> {
    pub(super) fn has_magnitudes(&self) -> bool {
        self.updates
            .iter()
            .any(|(_, update)| update.magnitude.is_some())
    }

    /// Ranks by module.
    fn ranks(&self) -> BTreeMap<&str, Value> {
        let ranks = self.updates.iter();
        ranks
            .map(|(module, update)| (*module, json!(update.rank)))
            .collect()
    }

    /// Alphas by module.
    fn alphas(&self) -> BTreeMap<&str, Value> {
        let of = |update: &ForeignLowRank| {
            let rank = update.rank as f64;
            let divisor = if self.config.use_rslora {
                rank.sqrt()
            } else {
                rank
            };
            let alpha = alpha(update.scale, divisor);
            if alpha.fract() == 0.0 && alpha.abs() < 1e15 {
                json!(alpha as i64)
            } else {
                json!(alpha)
            }
        };
        let updates = self.updates.iter();
        updates
            .map(|(module, update)| (*module, of(update)))
            .collect()
    }
}

/// What a model of one architecture is for, in the names of the Python packages.
struct Task {
    /// The task type of PEFT, if it has one.
    peft: Option<&'static str>,
    /// The class of `transformers`.
    class: &'static str,
    /// The pipeline of the Hugging Face Hub.
    pipeline: &'static str,
}

fn task(architecture: Architecture) -> Task {
    let (peft, class, pipeline) = match architecture {
        Architecture::Decoder | Architecture::Prefix => {
            (Some("CAUSAL_LM"), "AutoModelForCausalLM", "text-generation")
        }
        Architecture::Encoder => (None, "AutoModelForMaskedLM", "fill-mask"),
        Architecture::EncoderDecoder => (
            Some("SEQ_2_SEQ_LM"),
            "AutoModelForSeq2SeqLM",
            "text2text-generation",
        ),
    };
    Task {
        peft,
        class,
        pipeline,
    }
}

/// The content of `adapter_config.json`.
pub(super) fn config(written: &Written) -> Value {
    let (rank, ranks) = default_and_patterns(&written.ranks(), &written.matrices);
    let (alpha, alphas) = default_and_patterns(&written.alphas(), &written.matrices);
    let adapted: BTreeSet<&str> = written.updates.iter().map(|(module, _)| *module).collect();
    let saved = Some(&written.modules_to_save).filter(|modules| !modules.is_empty());
    let mut config = json!({
        "alpha_pattern": alphas, "auto_mapping": null,
        "base_model_name_or_path": written.base, "bias": written.bias,
        "fan_in_fan_out": written.has_conv1d, "inference_mode": true, "init_lora_weights": true,
        "layers_pattern": null, "layers_to_transform": null,
        "lora_alpha": alpha.unwrap_or(json!(written.config.alpha)), "lora_dropout": written.config.dropout,
        "modules_to_save": saved, "peft_type": "LORA",
        "r": rank.unwrap_or(json!(written.config.rank)), "rank_pattern": ranks, "revision": null,
        "target_modules": target_modules(&adapted, &written.matrices), "task_type": task(written.architecture).peft,
        "use_dora": written.has_magnitudes(), "use_rslora": written.config.use_rslora,
    });
    if written.ties_weights {
        config["ensure_weight_tying"] = json!(true); // Unknown to old versions.
    }
    config
}

/// The most frequent value, and the modules with another one: by the end of their names where all modules with that
/// end have the same one.
fn default_and_patterns(
    values: &BTreeMap<&str, Value>,
    matrices: &[&str],
) -> (Option<Value>, Map<String, Value>) {
    let count = |value: &Value| values.values().filter(|other| *other == value).count();
    // Of equally frequent ones, the first.
    let mut default: Option<&Value> = None;
    for value in values.values() {
        if default.is_none_or(|default| count(value) > count(default)) {
            default = Some(value);
        }
    }
    let mut patterns = Map::new();
    for (module, value) in values {
        if Some(value) == default {
            continue;
        }
        let is_common = |end: &&str| {
            let mut others = values.iter().filter(|(name, _)| is_end(end, name));
            others.all(|(_, other)| other == value)
        };
        let end = ends(module, matrices).into_iter().find(is_common);
        patterns.insert(end.unwrap_or(module).to_string(), value.clone());
    }
    (default.cloned(), patterns)
}

/// The names that select exactly the `adapted` of all `matrices`, by the end of their names.
fn target_modules<'a>(adapted: &BTreeSet<&'a str>, matrices: &[&'a str]) -> BTreeSet<&'a str> {
    let is_exact = |end: &&str| {
        let mut selected = matrices.iter().filter(|name| is_end(end, name));
        selected.all(|name| adapted.contains(name))
    };
    let name = |module: &&'a str| {
        let end = ends(module, matrices).into_iter().find(is_exact);
        end.unwrap_or(*module)
    };
    adapted.iter().map(name).collect()
}

/// The last part of a module's name if it stands for one kind of module, and its last two parts.
fn ends<'a>(module: &'a str, matrices: &[&str]) -> Vec<&'a str> {
    let end = |parts: usize| {
        let (start, _) = module.rmatch_indices('.').nth(parts - 1)?;
        Some(&module[start + 1..])
    };
    let (one, two) = (end(1), end(2));
    // The number of a layer does not tell kinds apart.
    let parent = |name: &str| -> Option<String> {
        let parent = name.rsplit('.').nth(1)?;
        let is_number = parent.bytes().all(|byte| byte.is_ascii_digit());
        (!is_number).then(|| parent.to_string())
    };
    let is_kind = |one: &&str| {
        let mut selected = matrices.iter().filter(|name| is_end(one, name));
        selected.all(|name| parent(name) == parent(module))
    };
    one.filter(is_kind).into_iter().chain(two).collect()
}

/// Whether PEFT applies the setting of `end` to `module`.
fn is_end(end: &str, module: &str) -> bool {
    let rest = module.strip_suffix(end);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The content of `README.md`, the model card.
pub(super) fn readme(written: &Written, card: &ModelCard) -> String {
    let name = if card.name.is_empty() {
        "adapter"
    } else {
        &card.name
    };
    let base = json!(written.base); // A string of JSON is one of YAML.
    let ranks: BTreeSet<usize> = written
        .updates
        .iter()
        .map(|(_, update)| update.rank)
        .collect();
    let ranks: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    let kind = if written.has_magnitudes() {
        "DoRA"
    } else {
        "LoRA"
    };
    let Task {
        class, pipeline, ..
    } = task(written.architecture);
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: {pipeline}\ntags:\n- lora\n---\n\n\
         # {name}\n\nA {kind} adapter of {} (rank {}), exported by nextword {}.\n\n```python\n\
         from peft import PeftModel\nfrom transformers import {class}\n\n\
         model = {class}.from_pretrained({base})\n\
         model = PeftModel.from_pretrained(model, \"PATH\")\n```\n",
        written.base,
        ranks.join(", "),
        env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATRICES: [&str; 6] = [
        "h.0.attn.c_attn",
        "h.0.attn.c_proj",
        "h.0.mlp.c_proj",
        "h.1.attn.c_attn",
        "h.1.attn.c_proj",
        "h.1.mlp.c_proj",
    ];

    #[test]
    fn target_modules_select_exactly_the_adapted_ones() {
        let targets = |adapted: &[usize]| {
            let adapted = adapted.iter().map(|index| MATRICES[*index]).collect();
            target_modules(&adapted, &MATRICES)
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(targets(&[0, 3]), ["c_attn"]);
        assert_eq!(targets(&[1, 4]), ["attn.c_proj"]);
        assert_eq!(
            targets(&[0, 1, 2, 3, 4, 5]),
            ["attn.c_proj", "c_attn", "mlp.c_proj"]
        );
        assert_eq!(targets(&[3]), ["h.1.attn.c_attn"]);
    }

    #[test]
    fn patterns_name_the_modules_that_differ_from_most() {
        let values = |differing: &[usize]| {
            let value = |index| json!(if differing.contains(&index) { 12 } else { 4 });
            let names = MATRICES.iter().enumerate();
            names
                .map(|(index, name)| (*name, value(index)))
                .collect::<BTreeMap<_, _>>()
        };
        let (default, patterns) = default_and_patterns(&values(&[0, 3]), &MATRICES);
        assert_eq!(default, Some(json!(4)));
        assert_eq!(json!(patterns), json!({"c_attn": 12}));
        let (_, patterns) = default_and_patterns(&values(&[2]), &MATRICES);
        assert_eq!(json!(patterns), json!({"h.0.mlp.c_proj": 12}));
        let (_, patterns) = default_and_patterns(&values(&[1, 4]), &MATRICES);
        assert_eq!(json!(patterns), json!({"attn.c_proj": 12}));
    }
}
