//! Settings in which two configurations differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A setting with different values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingDifference {
    /// The key, such as `model.n_layers`.
    pub key: String,
    /// The value in the first configuration; `None` if it is absent.
    pub a: Option<Value>,
    /// The value in the second configuration.
    pub b: Option<Value>,
}

/// The keys whose values differ, sorted. Tables are compared key by key, lists as a whole.
///
/// ```
/// use nextword_experiments::compare::differing_settings;
/// use serde_json::json;
///
/// let a = json!({"model": {"n_layers": 2, "d_model": 8}, "seed": 1});
/// let b = json!({"model": {"n_layers": 4, "d_model": 8}, "seed": 1, "name": "b"});
/// let keys: Vec<String> = differing_settings(&a, &b).into_iter().map(|d| d.key).collect();
/// assert_eq!(keys, ["model.n_layers", "name"]);
/// ```
pub fn differing_settings(a: &Value, b: &Value) -> Vec<SettingDifference> {
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    flatten(a, "", &mut left);
    flatten(b, "", &mut right);
    let mut keys: Vec<&String> = left.keys().chain(right.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let differing = keys
        .into_iter()
        .filter(|key| left.get(*key) != right.get(*key));
    differing
        .map(|key| SettingDifference {
            key: key.clone(),
            a: left.get(key).cloned(),
            b: right.get(key).cloned(),
        })
        .collect()
}

fn flatten(value: &Value, key: &str, settings: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                let dot = if key.is_empty() { "" } else { "." };
                flatten(value, &format!("{key}{dot}{name}"), settings);
            }
        }
        Value::Null => {}
        value => {
            settings.insert(key.to_string(), value.clone());
        }
    }
}
