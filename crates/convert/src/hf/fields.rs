//! Fields of a foreign `config.json`. Fields that are never read are rejected.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ignored;
use crate::ConvertError;

/// The problem with a field that is known to change the logits.
const UNSUPPORTED: &str = "which changes the logits in a way that nextword does not support";

/// The fields of a JSON object. Tracks which ones were read.
pub(crate) struct Fields {
    path: PathBuf,
    /// Prefix of field names in messages, such as `rope_scaling.`.
    prefix: String,
    map: Map<String, Value>,
    read: RefCell<HashSet<String>>,
}

impl Fields {
    pub(crate) fn new(path: &Path, value: Value) -> Result<Self, ConvertError> {
        match value {
            Value::Object(map) => Ok(Self {
                path: path.to_path_buf(),
                prefix: String::new(),
                map,
                read: RefCell::default(),
            }),
            _ => Err(ConvertError::source(path, "is not a JSON object")),
        }
    }

    /// The value of a field, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(name.to_string());
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Creates an error for the field `name`.
    pub(crate) fn error(&self, name: &str, problem: impl Into<String>) -> ConvertError {
        let mut value = self.map.get(name).unwrap_or(&Value::Null).to_string();
        if value.chars().count() > 200 {
            value = value.chars().take(200).chain(['…']).collect();
        }
        ConvertError::Field {
            path: self.path.clone(),
            field: format!("{}{name}", self.prefix),
            value,
            problem: problem.into(),
        }
    }

    /// The fields of a nested object.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, ConvertError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path.clone(),
                prefix: format!("{}{name}.", self.prefix),
                map: map.clone(),
                read: RefCell::default(),
            })),
            Some(_) => Err(self.error(name, "but must be an object")),
        }
    }

    fn optional<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
        kind: &str,
    ) -> Result<Option<T>, ConvertError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| self.error(name, format!("but must be {kind}"))),
        }
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ConvertError> {
        value.ok_or_else(|| self.error(name, "but this model type requires it"))
    }

    pub(crate) fn optional_count(&self, name: &str) -> Result<Option<usize>, ConvertError> {
        let read = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.optional(name, read, "a whole number")
    }

    /// Returns `absent` if the field does not exist; null counts as `None`.
    pub(crate) fn count_or(
        &self,
        name: &str,
        absent: Option<usize>,
    ) -> Result<Option<usize>, ConvertError> {
        if self.map.contains_key(name) {
            self.optional_count(name)
        } else {
            Ok(absent)
        }
    }

    pub(crate) fn required_count(&self, name: &str) -> Result<usize, ConvertError> {
        self.required(name, self.optional_count(name)?)
    }

    pub(crate) fn optional_number(&self, name: &str) -> Result<Option<f64>, ConvertError> {
        self.optional(name, Value::as_f64, "a number")
    }

    /// Returns `absent` if the field does not exist; null counts as `None`.
    pub(crate) fn number_or(
        &self,
        name: &str,
        absent: Option<f64>,
    ) -> Result<Option<f64>, ConvertError> {
        if self.map.contains_key(name) {
            self.optional_number(name)
        } else {
            Ok(absent)
        }
    }

    pub(crate) fn required_number(&self, name: &str) -> Result<f64, ConvertError> {
        self.required(name, self.optional_number(name)?)
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ConvertError> {
        Ok(self
            .optional(name, Value::as_bool, "true or false")?
            .unwrap_or(default))
    }

    pub(crate) fn optional_text(&self, name: &str) -> Result<Option<&str>, ConvertError> {
        self.optional(name, Value::as_str, "a string")
    }

    pub(crate) fn optional_text_list(&self, name: &str) -> Result<Option<Vec<&str>>, ConvertError> {
        let read = |value| {
            let list: &Vec<Value> = Value::as_array(value)?;
            list.iter().map(Value::as_str).collect()
        };
        self.optional(name, read, "a list of strings")
    }

    /// Rejects any value of `name` except `value`, null or no value.
    pub(crate) fn expect_flag(&self, name: &str, value: bool) -> Result<(), ConvertError> {
        if self.flag(name, value)? == value {
            return Ok(());
        }
        Err(self.error(name, UNSUPPORTED))
    }

    /// The fields that were not read, with their values.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (&str, &Value)> {
        let fields = self.map.iter();
        let fields = fields.filter(|(name, _)| !self.read.borrow().contains(*name));
        fields.map(|(name, value)| (name.as_str(), value))
    }

    /// Rejects fields that were not read, unless they are null or known not to affect the logits, always
    /// or with their value.
    pub(crate) fn reject_unknown(&self) -> Result<(), ConvertError> {
        let read = self.read.borrow();
        for (name, value) in &self.map {
            let ignored = self.prefix.is_empty() && ignored::FIELDS.contains(&name.as_str());
            if read.contains(name) || value.is_null() || ignored {
                continue;
            }
            match ignored::is_neutral(name, value) {
                Some(true) => {}
                Some(false) => return Err(self.error(name, UNSUPPORTED)),
                None => {
                    return Err(self.error(name, "an unknown field, which may change the logits"));
                }
            }
        }
        Ok(())
    }
}
