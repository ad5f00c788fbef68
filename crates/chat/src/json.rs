//! JSON values with the order of their keys, as templates see them.

use std::fmt;

use minijinja::Value;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A JSON value. Objects keep the order of their keys, which templates can print.
///
/// ```
/// use nextword_chat::Json;
///
/// let json: Json = serde_json::from_str(r#"{"b": [1, 2.5], "a": null}"#)?;
/// assert_eq!(json.get("b").and_then(Json::as_list).map(<[Json]>::len), Some(2));
/// assert_eq!(serde_json::to_string(&json)?, r#"{"b":[1,2.5],"a":null}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    List(Vec<Json>),
    /// An object. Keys are unique.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// The value of `key`, if this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(fields) = self else {
            return None;
        };
        let found = fields.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, if this is an array.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// What the value is, with its article, for error messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }

    /// The value with `change` applied to all texts in it, keys included.
    pub(crate) fn map_texts(&self, change: &mut dyn FnMut(&str) -> String) -> Self {
        match self {
            Self::String(text) => Self::String(change(text)),
            Self::List(items) => {
                Self::List(items.iter().map(|item| item.map_texts(change)).collect())
            }
            Self::Object(fields) => {
                let fields = fields.iter();
                let fields = fields.map(|(name, value)| (change(name), value.map_texts(change)));
                Self::Object(fields.collect())
            }
            other => other.clone(),
        }
    }

    /// The value in a template.
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::from(()),
            Self::Bool(flag) => Value::from(*flag),
            Self::Integer(number) => match i64::try_from(*number) {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(*number),
            },
            Self::Float(number) => Value::from(*number),
            Self::String(text) => Value::from(text.as_str()),
            Self::List(items) => Value::from(items.iter().map(Self::to_value).collect::<Vec<_>>()),
            Self::Object(fields) => object_value(fields),
        }
    }
}

/// A dict in a template, with the order of `fields`.
pub(crate) fn object_value(fields: &[(String, Json)]) -> Value {
    let pairs = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_value()));
    Value::from_pairs(pairs)
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(flag) => serializer.serialize_bool(*flag),
            Self::Integer(number) => serializer.serialize_i128(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::String(text) => serializer.serialize_str(text),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (name, value) in fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Integer(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        // Of several values for one key, the last one counts, as in Python.
        let mut positions = std::collections::HashMap::new();
        while let Some((name, value)) = map.next_entry::<String, Json>()? {
            match positions.get(&name) {
                Some(at) => {
                    let (_, earlier): &mut (String, Json) = &mut fields[*at];
                    *earlier = value;
                }
                None => {
                    positions.insert(name.clone(), fields.len());
                    fields.push((name, value));
                }
            }
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_their_order_and_the_last_of_equal_keys() {
        let json: Json =
            serde_json::from_str(r#"{"z": 1, "a": 2, "z": {"y": [], "b": -1e3}}"#).unwrap();
        let text = serde_json::to_string(&json).unwrap();
        assert_eq!(text, r#"{"z":{"y":[],"b":-1000.0},"a":2}"#);
        assert_eq!(
            json.to_value().to_string(),
            "{'z': {'y': [], 'b': -1000.0}, 'a': 2}"
        );
    }

    #[test]
    fn large_integers_stay_exact() {
        for text in ["18446744073709551615", "-9223372036854775808"] {
            let json: Json = serde_json::from_str(text).unwrap();
            assert_eq!(json.to_value().to_string(), text);
        }
    }
}
