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

use self::v0_1::v0_1_settings;
use crate::{PreferenceSettings, RunConfig};

mod v0_1;

pub(crate) use self::v0_1::v0_1_fingerprint;

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
    let mut settings = vec![
        setting("train.sequence_length", length, Value::Null),
        setting("train.lanes", config.train.lanes, 1),
    ];
    settings.extend(lora_settings(config));
    settings.extend(architecture_settings(config));
    settings.extend(masked_settings(config));
    settings.extend(preference_settings(config));
    settings
}

/// How tokens are masked for an encoder.
#[rustfmt::skip] // A table.
fn masked_settings(config: &RunConfig) -> Vec<Setting> {
    let (masked, none) = (config.data.masked.as_ref(), Value::Null);
    vec![
        setting("data.masked.rate", masked.map(|masked| masked.rate), &none),
        setting("data.masked.mask", masked.map(|masked| masked.mask), &none),
        setting("data.masked.random", masked.map(|masked| masked.random), &none),
        setting("data.masked.whole_words", masked.map(|masked| masked.whole_words), &none),
    ]
}

/// The settings of models that are not decoders.
#[rustfmt::skip] // A table.
fn architecture_settings(config: &RunConfig) -> Vec<Setting> {
    let model = &config.model;
    vec![
        setting("model.architecture", model.architecture, "decoder"),
        setting("model.n_encoder_layers", model.n_encoder_layers, Value::Null),
        setting("model.share_embeddings", model.share_embeddings, true),
        setting("model.embedding_norm", model.embedding_norm, false),
        setting("model.head_transform", model.head_transform, false),
    ]
}

/// The settings of `[preferences]`, all of them if there is that table.
fn preference_settings(config: &RunConfig) -> Vec<Setting> {
    let of = |value: fn(&PreferenceSettings) -> Value| config.preferences.as_ref().map(value);
    let (loss, beta) = (
        of(|table| to_value(table.loss)),
        of(|table| json!(table.beta)),
    );
    let none = Value::Null;
    vec![
        setting("preferences.loss", loss, &none),
        setting("preferences.beta", beta, &none),
        setting(
            "preferences.label_smoothing",
            of(|table| json!(table.label_smoothing)),
            &none,
        ),
        setting(
            "preferences.desirable_weight",
            of(|table| json!(table.desirable_weight)),
            &none,
        ),
        setting(
            "preferences.undesirable_weight",
            of(|table| json!(table.undesirable_weight)),
            &none,
        ),
    ]
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::field_reassign_with_default)]
mod tests;
