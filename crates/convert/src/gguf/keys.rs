//! The metadata keys of an architecture. Those that are neither read nor known to be without effect are rejected.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::metadata::{Metadata, MetadataError, Number, ReadValue};
use super::reader::GgufFile;
use crate::ConvertError;

/// Keys of an architecture that do not affect the logits, or only through tensors and keys that are read.
const IGNORED: [&str; 7] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "classifier.output_labels",
];

/// Keys of an architecture that leave the logits unchanged when they are zero, empty or false.
const NEUTRAL_AT_ZERO: [&str; 15] = [
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "leading_dense_block_count",
    "nextn_predict_layers",
    "pooling_type",
    "use_parallel_residual",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.sliding_window",
    "attention.shared_kv_layers",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "swin_norm",
    "logit_scale",
];

/// The metadata of one architecture, which tracks the keys that were read.
pub(super) struct Keys<'a> {
    pub(super) file: &'a GgufFile,
    architecture: &'static str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a GgufFile, architecture: &'static str) -> Self {
        Self {
            file,
            architecture,
            read: RefCell::default(),
        }
    }

    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn error<T>(&self, problem: impl Into<String>) -> Result<T, ConvertError> {
        Err(ConvertError::source(self.file.path(), problem))
    }

    /// Reads a key with a function of [`Metadata`].
    pub(super) fn get<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Metadata, &str) -> Result<T, MetadataError>,
    ) -> Result<T, ConvertError> {
        self.read.borrow_mut().insert(key.to_string());
        let value = read(&self.file.metadata, &self.name(key));
        value.or_else(|MetadataError(problem)| self.error(format!("the metadata key {problem}")))
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, ConvertError> {
        self.get(key, Metadata::uniform_count)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ConvertError> {
        self.get(key, Metadata::number)
    }

    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ConvertError> {
        match value {
            Some(value) => Ok(value),
            None => self.error(format!(
                "lacks the metadata key `{}`; hint: convert the model again with a current version of llama.cpp",
                self.name(key)
            )),
        }
    }

    pub(super) fn required_count(&self, key: &str) -> Result<usize, ConvertError> {
        self.required(key, self.count(key)?)
    }

    /// Rejects keys that were not read, unless they are known not to affect the logits.
    pub(super) fn reject_unknown(&self) -> Result<(), ConvertError> {
        let prefix = format!("{}.", self.architecture);
        let read = self.read.borrow();
        for (name, value) in self.file.metadata.iter() {
            let Some(key) = name.strip_prefix(&prefix) else {
                continue;
            };
            let is_neutral = NEUTRAL_AT_ZERO.contains(&key) && is_zero(value);
            if read.contains(key) || IGNORED.contains(&key) || is_neutral {
                continue;
            }
            let value = value.show();
            if key.starts_with("expert_") {
                return self.error(format!(
                    "is a mixture of experts (`{name}` is {value}), which nextword does not support; hint: use a model \
                     without experts"
                ));
            }
            return self.error(format!(
                "has the metadata key `{name}` ({value}), which nextword does not support and which may change the logits"
            ));
        }
        Ok(())
    }
}

fn is_zero(value: &ReadValue) -> bool {
    match value {
        ReadValue::Number(Number::Integer(n)) => *n == 0,
        ReadValue::Number(Number::Float(n)) => *n == 0.0,
        ReadValue::Bool(value) => !value,
        _ => false,
    }
}
