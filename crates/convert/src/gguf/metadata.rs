//! Metadata of a GGUF file that was read: values by key.

use std::collections::BTreeMap;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ReadValue {
    Number(Number),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    /// One byte each.
    Bools(Vec<u8>),
    /// Little-endian numbers of a type, as in the file.
    Numbers(Scalar, Vec<u8>),
}

/// A number of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Integer(i128),
    /// Of a 32-bit float, the number that its shortest decimal form denotes: `1e-5` as in a `config.json`.
    Float(f64),
}

/// The type of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

/// What is wrong with a metadata value.
#[derive(Debug)]
pub(crate) struct MetadataError(pub(crate) String);

impl Scalar {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Size in bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The number in the first bytes.
    pub(crate) fn read(self, bytes: &[u8]) -> Number {
        let mut wide = [0; 8];
        let len = bytes.len().min(self.size());
        wide[..len].copy_from_slice(&bytes[..len]);
        let n = u64::from_le_bytes(wide);
        Number::Integer(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => i128::from(n),
            Self::I8 => i128::from(n as i8),
            Self::I16 => i128::from(n as i16),
            Self::I32 => i128::from(n as i32),
            Self::I64 => i128::from(n.cast_signed()),
            Self::F32 => return Number::Float(shortest(f32::from_bits(n as u32))),
            Self::F64 => return Number::Float(f64::from_bits(n)),
        })
    }
}

/// The number that the shortest decimal form of `value` denotes.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl ReadValue {
    /// The value in messages.
    pub(crate) fn show(&self) -> String {
        let shown = match self {
            Self::Number(Number::Integer(n)) => n.to_string(),
            Self::Number(Number::Float(n)) => n.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::Texts(list) => format!("a list of {} strings", list.len()),
            Self::Bools(list) => format!("a list of {} flags", list.len()),
            Self::Numbers(scalar, bytes) => {
                format!("a list of {} numbers", bytes.len() / scalar.size())
            }
        };
        if shown.chars().count() > 200 {
            return shown.chars().take(200).chain(['…']).collect();
        }
        shown
    }
}

/// The metadata of a file.
#[derive(Debug, Default)]
pub(crate) struct Metadata(BTreeMap<String, ReadValue>);

impl Metadata {
    pub(crate) fn insert(&mut self, key: String, value: ReadValue) -> Result<(), MetadataError> {
        if self.0.contains_key(&key) {
            return Err(MetadataError(format!("has the metadata key `{key}` twice")));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// All entries, sorted by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &ReadValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(crate) fn get(&self, key: &str) -> Option<&ReadValue> {
        self.0.get(key)
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl FnOnce(&'a ReadValue) -> Option<T>,
    ) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.0.get(key) else {
            return Ok(None);
        };
        let wrong = || MetadataError(format!("`{key}` is {}, but must be {kind}", value.show()));
        read(value).map(Some).ok_or_else(wrong)
    }

    /// A whole number that is not negative.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, MetadataError> {
        self.optional(key, "a whole number", |value| match value {
            ReadValue::Number(Number::Integer(n)) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A whole number, or a list of equal ones, such as one for each layer.
    pub(crate) fn uniform_count(&self, key: &str) -> Result<Option<usize>, MetadataError> {
        let Some(ReadValue::Numbers(..)) = self.0.get(key) else {
            return self.count(key);
        };
        self.optional(key, "the same whole number for all layers", |_| {
            let counts = self.counts(key).ok()??;
            let first = *counts.first()?;
            counts.iter().all(|count| *count == first).then_some(first)
        })
    }

    /// A list of whole numbers that are not negative.
    pub(crate) fn counts(&self, key: &str) -> Result<Option<Vec<usize>>, MetadataError> {
        self.optional(key, "a list of whole numbers", |value| match value {
            ReadValue::Numbers(scalar, bytes) => {
                let numbers = bytes.chunks_exact(scalar.size());
                let numbers = numbers.map(|bytes| match scalar.read(bytes) {
                    Number::Integer(n) => usize::try_from(n).ok(),
                    Number::Float(_) => None,
                });
                numbers.collect()
            }
            _ => None,
        })
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, MetadataError> {
        self.optional(key, "a list of numbers", |value| match value {
            ReadValue::Numbers(scalar, bytes) => {
                let numbers = bytes.chunks_exact(scalar.size());
                let numbers = numbers.map(|bytes| match scalar.read(bytes) {
                    Number::Integer(n) => n as f64,
                    Number::Float(n) => n,
                });
                Some(numbers.collect())
            }
            _ => None,
        })
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, MetadataError> {
        self.optional(key, "a finite number", |value| match value {
            ReadValue::Number(Number::Integer(n)) => Some(*n as f64),
            ReadValue::Number(Number::Float(n)) => n.is_finite().then_some(*n),
            _ => None,
        })
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        self.optional(key, "true or false", |value| match value {
            ReadValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A list of flags.
    pub(crate) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, MetadataError> {
        self.optional(key, "a list of flags", |value| match value {
            ReadValue::Bools(list) => Some(list.iter().map(|byte| *byte != 0).collect()),
            _ => None,
        })
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        self.optional(key, "a string", |value| match value {
            ReadValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>, MetadataError> {
        self.optional(key, "a list of strings", |value| match value {
            ReadValue::Texts(list) => Some(list.as_slice()),
            _ => None,
        })
    }
}
