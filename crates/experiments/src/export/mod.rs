//! Metrics of a run in the formats of other tools.

mod crc32c;
mod csv;
mod tensorboard;

use std::collections::BTreeMap;

use nextword_train::MetricsLine;
use serde_json::Value as Json;

pub use csv::to_csv;
pub use tensorboard::to_tensorboard;

/// A metric that may be absent from a line.
type Value = fn(&MetricsLine) -> Option<f64>;

/// The metrics of every run: name in CSV, tag in `TensorBoard`, value.
const METRICS: [(&str, &str, Value); 7] = [
    ("loss", "loss/train", |line| line.loss),
    ("val_loss", "loss/validation", |line| line.val_loss),
    ("lr", "optimizer/learning_rate", |line| line.lr),
    ("grad_norm", "optimizer/gradient_norm", |line| {
        line.grad_norm
    }),
    ("tokens_per_second", "speed/tokens_per_second", |line| {
        line.tokens_per_second
    }),
    ("ended", "completions/ended", |line| line.ended),
    ("exact", "completions/exact", |line| line.exact),
];

/// The metrics of a line that only some runs have, under their names in `metrics.jsonl`: rewards and log probabilities
/// of preferences, the time that ranks wait, and the losses of other texts as `other_text/NAME`.
fn further(line: &MetricsLine) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let Ok(Json::Object(fields)) = serde_json::to_value(line) else {
        return found;
    };
    let is_known = |name: &str| {
        let mut names = METRICS.iter().map(|(known, ..)| *known);
        matches!(name, "step" | "tokens" | "elapsed") || names.any(|known| known == name)
    };
    for (name, value) in fields.into_iter().filter(|(name, _)| !is_known(name)) {
        match value {
            Json::Object(values) => found.extend(values.into_iter().filter_map(|(key, value)| {
                let value = value.as_f64()?;
                Some((format!("{name}/{key}"), value))
            })),
            value => found.extend(value.as_f64().map(|value| (name, value))),
        }
    }
    found
}
