//! `adapter_config.json` of PEFT.

use std::path::Path;

use serde_json::Value;

use super::pattern::Patterns;
use crate::hf::fields::Fields;
use crate::{ConvertError, json as files};

/// The name of the file.
pub(super) const CONFIG: &str = "adapter_config.json";

/// Fields that decide nothing about a trained adapter: the names of its tensors say which modules it adapts.
const IGNORED: &[&str] = &[
    "auto_mapping",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Initializations that change the weights of the base model, so that the adapter fits only the changed ones.
const CHANGING_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Initializations that change only the adapter.
const OF_THE_ADAPTER: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The settings of an adapter.
#[derive(Debug)]
pub(super) struct PeftConfig {
    rank: usize,
    ranks: Patterns,
    alpha: f64,
    alphas: Patterns,
    pub(super) use_rslora: bool,
    pub(super) use_dora: bool,
    pub(super) dropout: f64,
    /// Whether a tied output layer has the values of a trained token embedding.
    pub(super) ties_weights: bool,
}

impl PeftConfig {
    /// Reads the file in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        let path = folder.join(CONFIG);
        let Some(value) = files::read_value(&path)? else {
            let problem = format!("contains no {CONFIG}; hint: pass the folder of a PEFT adapter");
            return Err(ConvertError::source(folder, problem));
        };
        Self::parse(&path, value)
    }

    fn parse(path: &Path, value: Value) -> Result<Self, ConvertError> {
        let fields = Fields::new(path, value)?;
        if fields.optional_text("peft_type")? != Some("LORA") {
            return Err(fields.error("peft_type", "but nextword supports only LORA"));
        }
        check_initialization(&fields)?;
        if !matches!(
            fields.optional_text("bias")?,
            None | Some("none" | "all" | "lora_only")
        ) {
            return Err(fields.error("bias", "but must be none, all or lora_only"));
        }
        fields.get("base_model_name_or_path"); // The caller names the base.
        fields.get("modules_to_save"); // The tensors say which.
        let dropout = fields.optional_number("lora_dropout")?.unwrap_or(0.0);
        if !(0.0..1.0).contains(&dropout) {
            return Err(fields.error("lora_dropout", "but must be at least 0 and less than 1"));
        }
        let alpha = fields.optional_number("lora_alpha")?.unwrap_or(8.0);
        if alpha <= 0.0 {
            return Err(fields.error("lora_alpha", "but must be greater than 0"));
        }
        let rank = fields.optional_count("r")?.unwrap_or(8);
        if rank == 0 {
            return Err(fields.error("r", "but must be at least 1"));
        }
        let [ranks, alphas] = Patterns::read_both(&fields)?;
        let config = Self {
            rank,
            ranks,
            alpha,
            alphas,
            use_rslora: fields.flag("use_rslora", false)?,
            use_dora: fields.flag("use_dora", false)?,
            dropout,
            ties_weights: fields.flag("ensure_weight_tying", false)?,
        };
        reject_unknown(&fields)?;
        Ok(config)
    }

    /// The rank that the file gives the adapter of `module`.
    pub(super) fn rank(&self, module: &str) -> f64 {
        self.ranks.find(module).unwrap_or(self.rank as f64)
    }

    /// The factor that the output of an adapter of rank `rank` is multiplied with.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f32 {
        self.scale_of_rank(module, rank as f64)
    }

    /// [`scale`](Self::scale) for a rank as the file gives it.
    pub(super) fn scale_of_rank(&self, module: &str, rank: f64) -> f32 {
        let alpha = self.alphas.find(module).unwrap_or(self.alpha);
        let divisor = if self.use_rslora { rank.sqrt() } else { rank };
        (alpha / divisor) as f32
    }

    /// Alpha and rank of the modules that no pattern names.
    pub(super) fn defaults(&self) -> (f64, usize) {
        (self.alpha, self.rank)
    }
}

fn check_initialization(fields: &Fields) -> Result<(), ConvertError> {
    const NAME: &str = "init_lora_weights";
    match fields.get(NAME) {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(kind)) if OF_THE_ADAPTER.contains(&kind.as_str()) => Ok(()),
        Some(Value::String(kind)) if CHANGING_THE_BASE.iter().any(|k| kind.starts_with(k)) => {
            Err(fields.error(
                NAME,
                "which changed the weights of the base model; hint: save it with \
                 `model.save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL)`",
            ))
        }
        Some(_) => Err(fields.error(NAME, "but nextword does not know this initialization")),
    }
}

/// Rejects every field that is not known to have no effect, unless its value says that nothing is set.
fn reject_unknown(fields: &Fields) -> Result<(), ConvertError> {
    let unread = fields.unread().filter(|(name, value)| {
        let is_unset = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        // Its settings count only with an initialization that is refused.
        let is_settings = ["corda_config", "loftq_config", "lora_ga_config"].contains(name);
        !is_unset && !is_settings && !IGNORED.contains(name)
    });
    match unread.map(|(name, _)| name).next() {
        Some(name) => Err(fields.error(
            name,
            "which changes what the adapter computes in a way that nextword does not support",
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(changes: Value) -> Result<PeftConfig, ConvertError> {
        let mut value = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
        for (name, change) in changes.as_object().unwrap() {
            value[name] = change.clone();
        }
        PeftConfig::parse(Path::new(CONFIG), value)
    }

    #[test]
    fn patterns_change_rank_and_scale_of_the_modules_that_they_match_at_the_end() {
        let config = parse(json!({
            "rank_pattern": {"q_proj": 2, "^model.layers.1.mlp.up_proj": 3},
            "alpha_pattern": {r".*\.(k|v)_proj": 16},
        }))
        .unwrap();
        let query = "model.layers.0.self_attn.q_proj";
        assert_eq!((config.rank(query), config.scale(query, 2)), (2.0, 4.0));
        assert_eq!(config.rank("model.layers.0.self_attn.q_proj.x"), 4.0);
        assert_eq!(config.rank("model.layers.0.self_attn.xq_proj"), 4.0);
        assert_eq!(config.rank("model.layers.1.mlp.up_proj"), 3.0);
        assert_eq!(config.rank("model.model.layers.1.mlp.up_proj"), 4.0);
        assert_eq!(config.scale("a.v_proj", 4), 4.0);
        assert_eq!(config.scale("a.o_proj", 4), 2.0);
        let config = parse(json!({"use_rslora": true})).unwrap();
        assert_eq!(config.scale(query, 16), 2.0);
    }

    #[test]
    fn patterns_are_limited_in_number_and_size() {
        let patterns = |count: usize| {
            let entry = |i| (format!(r"\w{{30}}\.a{i}"), json!(3));
            Value::Object((0..count).map(entry).collect())
        };
        let name = format!("{}.a7", "x".repeat(30));
        let config = json!({"rank_pattern": patterns(1024), "alpha_pattern": patterns(1024)});
        assert_eq!(parse(config).unwrap().rank(&name), 3.0);
        let config = json!({"rank_pattern": patterns(1024), "alpha_pattern": patterns(1025)});
        let error = parse(config).map(drop).unwrap_err().to_string();
        assert!(
            error.contains("alpha_pattern") && error.contains("at most 2048"),
            "{error}"
        );
        let config = json!({"rank_pattern": {"(?:ab){20000}": 3}});
        let error = parse(config).map(drop).unwrap_err().to_string();
        assert!(error.contains("regular expression"), "{error}");
    }

    #[test]
    fn fields_that_change_the_result_are_errors_that_name_them() {
        for (name, value) in [
            ("peft_type", json!("IA3")),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("later")),
            ("init_lora_weights", json!(3)),
            ("target_parameters", json!(["experts"])),
            ("layer_replication", json!([[0, 4]])),
            ("trainable_token_indices", json!([1, 2])),
            ("alora_invocation_tokens", json!([1])),
            ("megatron_config", json!({"a": 1})),
            ("use_qalora", json!(true)),
            ("use_bdlora", json!({"x": 1})),
            ("arrow_config", json!({"x": 1})),
            ("a_field_of_the_future", json!(1)),
            ("rank_pattern", json!({"(": 3})),
            ("rank_pattern", json!({"x": "y"})),
            ("alpha_pattern", json!([])),
            ("bias", json!("some")),
            ("lora_dropout", json!(1.0)),
            ("r", json!(-1)),
            ("lora_alpha", json!(0)),
        ] {
            let error = parse(json!({name: value})).map(drop).unwrap_err();
            assert!(error.to_string().contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn fields_without_effect_are_accepted() {
        let fields = json!({
            "target_modules": "all-linear", "task_type": "CAUSAL_LM", "qalora_group_size": 16,
            "megatron_core": "megatron.core", "init_lora_weights": "gaussian", "loftq_config": {},
            "a_field_of_the_future": null, "another": false, "runtime_config": {"x": false},
        });
        parse(fields).unwrap();
    }
}
