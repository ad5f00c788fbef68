//! Fingerprint of the settings that determine a run's weights, comparable across versions.
//!
//! A checkpoint stores the settings that must not change when its run is resumed. They are explicit
//! key/value pairs under the names that the keys had in version 0.1, without keys at their defaults.
//! A new key, a renamed key or a renamed Rust type therefore does not change the fingerprint of any
//! existing run.

use std::collections::BTreeMap;

use nextword_base::hash::sha256_hex;
use serde::Serialize;
use serde_json::{Value, json};

use crate::RunConfig;

/// Settings that are not at their defaults, by the names of version 0.1.
pub(crate) type Settings = BTreeMap<String, Value>;

/// A setting of this run and the default that it had when it was introduced. Key and default never
/// change: a later change of a default must not change the fingerprint of existing runs.
struct Setting {
    key: &'static str,
    value: Value,
    default: Value,
}

fn setting(key: &'static str, value: impl Serialize, default: impl Serialize) -> Setting {
    Setting {
        key,
        value: to_value(value),
        default: to_value(default),
    }
}

/// Converts a value of a validated configuration, which JSON can always express.
fn to_value(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Returns the settings of `config` that determine the results of the run on its data, without those
/// at their defaults. Length, validation, checkpoints, samples and device are excluded: they may
/// change on resume.
pub(crate) fn settings(config: &RunConfig) -> Settings {
    v0_1_settings(config)
        .into_iter()
        .chain(later_settings(config))
        .filter(|setting| setting.value != setting.default)
        .map(|setting| (setting.key.to_string(), setting.value))
        .collect()
}

/// Returns the SHA-256 of the lines `key=value` of [`settings`], in the order of the keys.
pub(crate) fn fingerprint(config: &RunConfig) -> String {
    let lines: Vec<String> = settings(config)
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect();
    sha256_hex(lines.concat().as_bytes())
}

/// Describes the keys whose values differ, each with its earlier and its current value.
pub(crate) fn differences(earlier: &Settings, config: &RunConfig) -> Vec<String> {
    // Through JSON, like the earlier values: parsing may change the last bit of a number.
    let current: Settings = settings(config)
        .into_iter()
        .map(|(key, value)| {
            let parsed = serde_json::from_str(&value.to_string()).unwrap_or(value);
            (key, parsed)
        })
        .collect();
    let defaults: Settings = v0_1_settings(config)
        .into_iter()
        .chain(later_settings(config))
        .map(|setting| (setting.key.to_string(), setting.default))
        .collect();
    let keys: std::collections::BTreeSet<_> = earlier.keys().chain(current.keys()).collect();
    keys.into_iter()
        .filter(|key| earlier.get(*key) != current.get(*key))
        .map(|key| {
            let show = |settings: &Settings| {
                settings
                    .get(key)
                    .or_else(|| defaults.get(key))
                    .map_or_else(|| "unset".to_string(), Value::to_string)
            };
            format!("{key} was {}, is {}", show(earlier), show(&current))
        })
        .collect()
}

/// Settings introduced after version 0.1, with their defaults: add new ones here. At its default, a
/// new setting must not change the results of existing runs.
fn later_settings(config: &RunConfig) -> Vec<Setting> {
    // The length of the context is the same as none.
    let length = config.train.sequence_length;
    let length = length.filter(|length| *length != config.model.context_length);
    let mut settings = vec![setting("train.sequence_length", length, Value::Null)];
    settings.extend(lora_settings(config));
    settings
}

/// The settings of `[lora]`, all of them if there is that table.
#[rustfmt::skip] // A table.
fn lora_settings(config: &RunConfig) -> Vec<Setting> {
    let lora = config.lora.as_ref();
    let none = Value::Null;
    vec![
        setting("lora.rank", lora.map(|lora| lora.rank), &none),
        setting("lora.alpha", lora.map(|lora| lora.alpha), &none),
        setting("lora.dropout", lora.map(|lora| lora.dropout), &none),
        setting("lora.target_modules", lora.map(|lora| &lora.target_modules), &none),
        setting("lora.layers", lora.and_then(|lora| lora.layers), &none),
        setting("lora.use_rslora", lora.map(|lora| lora.use_rslora), &none),
        setting("lora.use_dora", lora.map(|lora| lora.use_dora), &none),
        setting("lora.plus_ratio", lora.map(|lora| lora.plus_ratio), &none),
        setting("lora.modules_to_save", lora.map(|lora| &lora.modules_to_save), &none),
    ]
}

/// The settings of version 0.1. Keys and defaults are frozen.
#[rustfmt::skip] // A table.
fn v0_1_settings(config: &RunConfig) -> Vec<Setting> {
    let none = Value::Null;
    let (model, train) = (&config.model, &config.train);
    let (optimizer, schedule) = (&config.optimizer, &config.schedule);
    vec![
        setting("seed", config.seed, 1337),
        setting("data.order", config.data.order, "random"),
        setting("data.packing", config.data.packing, "packed"),
        setting("model.vocab_size", model.vocab_size, 0),
        setting("model.context_length", model.context_length, 64),
        setting("model.n_layers", model.n_layers, 4),
        setting("model.n_heads", model.n_heads, 4),
        setting("model.n_kv_heads", model.n_kv_heads, &none),
        setting("model.head_dim", model.head_dim, &none),
        setting("model.d_model", model.d_model, 128),
        setting("model.d_ff", model.d_ff, &none),
        setting("model.position", model.position, "learned"),
        setting("model.rotary.base", model.rotary.base, 10_000.0),
        setting("model.rotary.scaling", model.rotary.scaling, json!({"kind": "none"})),
        setting("model.rotary.width", model.rotary.width, &none),
        setting("model.rotary.local_base", model.rotary.local_base, &none),
        setting("model.norm", model.norm, "layer"),
        setting("model.norm_eps", model.norm_eps, 1e-5),
        setting("model.norm_placement", model.norm_placement, "pre"),
        setting("model.feed_forward", model.feed_forward, "gelu"),
        setting("model.bias.qkv", model.bias.qkv, true),
        setting("model.bias.attention_output", model.bias.attention_output, true),
        setting("model.bias.feed_forward", model.bias.feed_forward, true),
        setting("model.bias.norm", model.bias.norm, true),
        setting("model.bias.head", model.bias.head, false),
        setting("model.tied_head", model.tied_head, true),
        setting("model.output_projection", model.output_projection, true),
        setting("model.qk_norm", model.qk_norm, false),
        setting("model.norm_unit_offset", model.norm_unit_offset, false),
        setting("model.embedding_scale", model.embedding_scale, &none),
        setting("model.score_width", model.score_width, &none),
        setting("model.score_soft_cap", model.score_soft_cap, &none),
        setting("model.parallel", model.parallel, false),
        setting("model.logit_soft_cap", model.logit_soft_cap, &none),
        setting("model.windows", &model.windows, json!([])),
        setting("model.dropout.embedding", model.dropout.embedding, 0.0),
        setting("model.dropout.attention", model.dropout.attention, 0.0),
        setting("model.dropout.residual", model.dropout.residual, 0.0),
        setting("model.residual", model.residual, true),
        setting("model.init.std", model.init.std, 0.02),
        setting("model.init.scale_output", model.init.scale_output, true),
        setting("train.batch_size", train.batch_size, 12),
        setting("train.accumulation", train.accumulation, 1),
        setting("train.precision", train.precision, "f32"),
        setting("optimizer.kind", optimizer.kind, "adamw"),
        setting("optimizer.beta1", optimizer.beta1, 0.9),
        setting("optimizer.beta2", optimizer.beta2, 0.99),
        setting("optimizer.eps", optimizer.eps, 1e-8),
        setting("optimizer.weight_decay", optimizer.weight_decay, 0.1),
        setting("optimizer.momentum", optimizer.momentum, 0.95),
        setting("optimizer.muon_learning_rate", optimizer.muon_learning_rate, 0.02),
        setting("optimizer.clip_norm", optimizer.clip_norm, 1.0),
        setting("schedule.kind", schedule.kind, "cosine"),
        setting("schedule.learning_rate", schedule.learning_rate, 1e-3),
        setting("schedule.min_learning_rate", schedule.min_learning_rate, 1e-4),
        setting("schedule.warmup_steps", schedule.warmup_steps, 100),
        setting("schedule.end_step", schedule.end_step, &none),
        setting("schedule.decay_steps", schedule.decay_steps, &none),
    ]
}

/// The fingerprint that version 0.1 stored: the SHA-256 of the whole configuration as JSON, in which the
/// keys that may change on resume were at their defaults. `None` if a later setting is in use, which
/// no run of version 0.1 can have had.
pub(crate) fn v0_1_fingerprint(config: &RunConfig) -> Option<String> {
    later_settings(config)
        .iter()
        .all(|setting| setting.value == setting.default)
        .then(|| sha256_hex(v0_1_json(config).as_bytes()))
}

/// Keys that version 0.1 left out of its JSON while they were at their defaults.
const OMITTED_AT_DEFAULT: &[&str] = &[
    "model.n_kv_heads",
    "model.head_dim",
    "model.d_ff",
    "model.rotary.width",
    "model.rotary.local_base",
    "model.norm_unit_offset",
    "model.embedding_scale",
    "model.score_width",
    "model.score_soft_cap",
    "model.parallel",
    "model.logit_soft_cap",
    "train.precision",
    "schedule.end_step",
    "schedule.decay_steps",
];

/// Keys with fixed values in the JSON of version 0.1: (the setting that follows, key, value).
const FIXED: &[(&str, &str, &str)] = &[
    ("seed", "name", r#""run""#),
    ("data.order", "device", r#""flex""#),
    ("data.order", "data.path", "null"),
    ("data.order", "data.paths", "[]"),
    ("data.order", "data.format", r#""auto""#),
    ("data.order", "data.separator", "null"),
    ("data.order", "data.field", r#""text""#),
    ("data.order", "data.builtin", "null"),
    ("data.order", "data.seed", "0"),
    ("data.order", "data.documents", "1900"),
    ("data.order", "data.prepared", "null"),
    (
        "data.order",
        "data.tokenizer",
        r#"{"kind":"char","vocab_size":null,"file":null,"eos":"<EOS>","unk":"","pad":"","sample_bytes":67108864}"#,
    ),
    (
        "data.order",
        "data.split",
        r#"{"by":"tail","validation":0.1,"seed":0}"#,
    ),
    ("train.batch_size", "train.steps", "0"),
    ("optimizer.kind", "train.log_every", "0"),
    (
        "",
        "validation",
        r#"{"every":250,"windows":0,"batch_size":16,"patience":0}"#,
    ),
    (
        "",
        "checkpoint",
        r#"{"every":500,"keep_last":2,"keep_every":0}"#,
    ),
    (
        "",
        "samples",
        r#"{"every":0,"prompts":[],"max_tokens":200,"temperature":0.8}"#,
    ),
];

/// The JSON that version 0.1 serialized, in its order of keys.
fn v0_1_json(config: &RunConfig) -> String {
    let fixed_before = |next: &'static str| {
        FIXED
            .iter()
            .filter(move |(follower, ..)| *follower == next)
            .map(|(_, key, value)| (*key, (*value).to_string()))
    };
    let mut fields = Vec::new();
    for setting in v0_1_settings(config) {
        fields.extend(fixed_before(setting.key));
        if OMITTED_AT_DEFAULT.contains(&setting.key) && setting.value == setting.default {
            continue;
        }
        let value = match setting.key {
            // The fields of a `Value` are sorted; those of the enum are in declaration order.
            "model.rotary.scaling" => {
                serde_json::to_string(&config.model.rotary.scaling).unwrap_or_default()
            }
            _ => setting.value.to_string(),
        };
        fields.push((setting.key, value));
    }
    fields.extend(fixed_before(""));
    nested(&fields)
}

/// Formats a JSON object of `section.key` pairs; the keys of a section are adjacent.
fn nested(fields: &[(&str, String)]) -> String {
    let section = |key: &str| key.split_once('.').map(|(section, _)| section.to_string());
    let objects = fields.chunk_by(|a, b| section(a.0).is_some() && section(a.0) == section(b.0));
    let members: Vec<_> = objects
        .map(|group| match section(group[0].0) {
            Some(name) => {
                let inner: Vec<_> = group
                    .iter()
                    .map(|(key, value)| (&key[name.len() + 1..], value.clone()))
                    .collect();
                format!("\"{name}\":{}", nested(&inner))
            }
            None => format!("\"{}\":{}", group[0].0, group[0].1),
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::field_reassign_with_default)]
mod tests {
    use nextword_model::{NormKind, Position, RotaryScaling};

    use super::*;
    use crate::ScheduleKind;

    #[test]
    fn defaults_add_nothing_to_the_fingerprint() {
        let config = RunConfig::default();
        assert_eq!(settings(&config), Settings::new());
        assert_eq!(fingerprint(&config), sha256_hex(b""));
    }

    #[test]
    fn settings_differing_from_defaults_are_included() {
        let mut config = RunConfig::default();
        config.model.d_model = 64;
        config.schedule.end_step = Some(7);
        let expected = Settings::from([
            ("model.d_model".to_string(), json!(64)),
            ("schedule.end_step".to_string(), json!(7)),
        ]);
        assert_eq!(settings(&config), expected);
        let lines = b"model.d_model=64\nschedule.end_step=7\n";
        assert_eq!(fingerprint(&config), sha256_hex(lines));
    }

    #[test]
    fn settings_that_may_change_on_resume_are_excluded() {
        let mut config = RunConfig::default();
        config.name = "other".to_string();
        config.device = "ndarray".to_string();
        config.train.steps = 9;
        config.train.recompute = true;
        config.checkpoint.every = 3;
        config.samples.every = 5;
        assert_eq!(fingerprint(&config), fingerprint(&RunConfig::default()));
        let old = v0_1_fingerprint(&config);
        assert_eq!(old, v0_1_fingerprint(&RunConfig::default()));
    }

    // Both hashes were computed by version 0.1 itself.
    #[test]
    fn v0_1_fingerprints_are_reproduced() {
        let old = |config: &RunConfig| v0_1_fingerprint(config).unwrap();
        let mut config = RunConfig::default();
        config.model.vocab_size = 55;
        assert_eq!(
            old(&config),
            "e3e9deafb4091ebc7b0f5c34ceed8c4258a1d9ac9ecaf32f394f17e9160fec09"
        );
        config.seed = 5;
        config.model.n_kv_heads = Some(2);
        config.model.position = Position::Rotary;
        config.model.rotary.scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context_length: 32,
        };
        config.model.rotary.local_base = Some(1e6);
        config.model.norm = NormKind::Rms;
        config.model.norm_unit_offset = true;
        config.model.windows = vec![16, 0];
        config.model.dropout.attention = 0.1;
        config.train.accumulation = 3;
        config.schedule.kind = ScheduleKind::Wsd;
        config.schedule.decay_steps = Some(40);
        assert_eq!(
            old(&config),
            "783a73f19e04abc741faa4f85e6aa9e55489dc410d7d9377b5687dab4c4a85b0"
        );
    }

    /// Every field of the configuration is listed here. A new one does not compile until it is added:
    /// also add it to `later_settings`, unless it may change on resume.
    #[test]
    #[allow(clippy::too_many_lines)] // A list.
    fn every_setting_is_considered() {
        let config = RunConfig::default();
        let RunConfig {
            name: _,
            out: _,
            seed: _,
            device: _,
            start_from: _,
            expect_parameters: _,
            data,
            model,
            train,
            lora: _,
            optimizer,
            schedule,
            validation: _,
            checkpoint: _,
            samples: _,
            probes: _,
            warnings: _,
            unset: _,
            run_folder: _,
        } = &config;
        let crate::LoraSettings {
            rank: _,
            alpha: _,
            dropout: _,
            target_modules: _,
            layers: _,
            use_rslora: _,
            use_dora: _,
            plus_ratio: _,
            modules_to_save: _,
        } = crate::LoraSettings::default();
        // The hashes of tokens, samples and template cover all but `order` and `packing`.
        let nextword_data::DataConfig {
            path: _,
            paths: _,
            format: _,
            separator: _,
            field: _,
            builtin: _,
            seed: _,
            documents: _,
            prepared: _,
            conversations: _,
            train_on: _,
            chat_template: _,
            eos_token: _,
            too_long: _,
            tokenizer: _,
            split: _,
            order: _,
            packing: _,
        } = data;
        let nextword_model::ModelConfig {
            vocab_size: _,
            context_length: _,
            n_layers: _,
            n_heads: _,
            n_kv_heads: _,
            head_dim: _,
            d_model: _,
            d_ff: _,
            position: _,
            rotary,
            norm: _,
            norm_eps: _,
            norm_placement: _,
            feed_forward: _,
            bias,
            tied_head: _,
            output_projection: _,
            qk_norm: _,
            norm_unit_offset: _,
            embedding_scale: _,
            score_width: _,
            score_soft_cap: _,
            parallel: _,
            logit_soft_cap: _,
            windows: _,
            dropout,
            residual: _,
            init,
        } = model;
        let nextword_model::RotaryConfig {
            base: _,
            scaling: _,
            width: _,
            local_base: _,
        } = rotary;
        let nextword_model::BiasConfig {
            qkv: _,
            attention_output: _,
            feed_forward: _,
            norm: _,
            head: _,
        } = bias;
        let nextword_model::DropoutConfig {
            embedding: _,
            attention: _,
            residual: _,
        } = dropout;
        let nextword_model::InitConfig {
            std: _,
            scale_output: _,
        } = init;
        let crate::TrainConfig {
            steps: _,
            epochs: _,
            batch_size: _,
            accumulation: _,
            sequence_length: _,
            precision: _,
            recompute: _,
            log_every: _,
        } = train;
        let crate::OptimizerConfig {
            kind: _,
            beta1: _,
            beta2: _,
            eps: _,
            weight_decay: _,
            momentum: _,
            muon_learning_rate: _,
            clip_norm: _,
        } = optimizer;
        let crate::ScheduleConfig {
            kind: _,
            learning_rate: _,
            min_learning_rate: _,
            warmup_steps: _,
            end_step: _,
            decay_steps: _,
        } = schedule;
        // `seed`, `order` and `packing`; the model's fields without its four tables; those of the tables;
        // `train` without steps, epochs, recompute and log_every; all of lora, optimizer and schedule.
        let count = v0_1_settings(&config).len() + later_settings(&config).len();
        assert_eq!(count, 3 + (28 - 4) + 14 + 4 + 9 + 8 + 6);
    }

    #[test]
    fn differences_name_key_and_both_values() {
        let mut config = RunConfig::default();
        config.train.batch_size = 16;
        let earlier = settings(&config);
        config.train.batch_size = 12;
        config.model.n_layers = 6;
        assert_eq!(
            differences(&earlier, &config),
            [
                "model.n_layers was 4, is 6",
                "train.batch_size was 16, is 12"
            ]
        );
    }
}
