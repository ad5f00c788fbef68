//! The settings and the fingerprint of version 0.1.

use nextword_base::hash::sha256_hex;
use serde_json::{Value, json};

use super::{Setting, later_settings, setting};
use crate::RunConfig;

/// The settings of version 0.1. Keys and defaults are frozen.
#[rustfmt::skip] // A table.
pub(super) fn v0_1_settings(config: &RunConfig) -> Vec<Setting> {
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
