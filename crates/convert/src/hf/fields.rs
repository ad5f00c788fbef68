//! A foreign `config.json`, field by field, so that none is overlooked.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ConvertError;

/// Fields that leave the logits alone: training, bookkeeping, output, and the sampling settings
/// that belong to `generation_config.json`.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_num_labels",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "custom_pipelines",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "is_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length",
    "min_length",
    "model_max_length",
    "n_ctx",
    "n_special",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "seq_length",
    "sliding_window_size",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// The fields of one object of the file. Each that is asked for is remembered.
pub(crate) struct Fields {
    path: PathBuf,
    /// What stands before a field's name in messages: `rope_scaling.`.
    within: String,
    map: Map<String, Value>,
    seen: RefCell<HashSet<String>>,
}

impl Fields {
    pub(crate) fn new(path: &Path, value: Value) -> Result<Self, ConvertError> {
        match value {
            Value::Object(map) => Ok(Self {
                path: path.to_path_buf(),
                within: String::new(),
                map,
                seen: RefCell::default(),
            }),
            _ => Err(ConvertError::source(path, "is no JSON object")),
        }
    }

    /// The field's value, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.seen.borrow_mut().insert(name.to_string());
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// An error about the field `name`.
    pub(crate) fn wrong(&self, name: &str, problem: impl Into<String>) -> ConvertError {
        let mut value = self.map.get(name).unwrap_or(&Value::Null).to_string();
        if value.chars().count() > 200 {
            value = value.chars().take(200).chain(['…']).collect();
        }
        ConvertError::Field {
            path: self.path.clone(),
            field: format!("{}{name}", self.within),
            value,
            problem: problem.into(),
        }
    }

    /// The fields of an object within this one.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, ConvertError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path.clone(),
                within: format!("{}{name}.", self.within),
                map: map.clone(),
                seen: RefCell::default(),
            })),
            Some(_) => Err(self.wrong(name, "where an object was expected")),
        }
    }

    fn maybe<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
        kind: &str,
    ) -> Result<Option<T>, ConvertError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| self.wrong(name, format!("where {kind} was expected"))),
        }
    }

    fn needed<T>(&self, name: &str, value: Option<T>) -> Result<T, ConvertError> {
        value.ok_or_else(|| self.wrong(name, "and this type of model cannot do without it"))
    }

    pub(crate) fn maybe_count(&self, name: &str) -> Result<Option<usize>, ConvertError> {
        let read = |value: &Value| usize::try_from(value.as_u64()?).ok();
        self.maybe(name, read, "a whole number")
    }

    /// `absent` stands for a field that is not there at all, which null is not.
    pub(crate) fn count_or(
        &self,
        name: &str,
        absent: Option<usize>,
    ) -> Result<Option<usize>, ConvertError> {
        if self.map.contains_key(name) {
            self.maybe_count(name)
        } else {
            Ok(absent)
        }
    }

    pub(crate) fn count(&self, name: &str) -> Result<usize, ConvertError> {
        self.needed(name, self.maybe_count(name)?)
    }

    pub(crate) fn maybe_number(&self, name: &str) -> Result<Option<f64>, ConvertError> {
        self.maybe(name, Value::as_f64, "a number")
    }

    /// As [`count_or`](Self::count_or).
    pub(crate) fn number_or(
        &self,
        name: &str,
        absent: Option<f64>,
    ) -> Result<Option<f64>, ConvertError> {
        if self.map.contains_key(name) {
            self.maybe_number(name)
        } else {
            Ok(absent)
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<f64, ConvertError> {
        self.needed(name, self.maybe_number(name)?)
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ConvertError> {
        Ok(self
            .maybe(name, Value::as_bool, "true or false")?
            .unwrap_or(default))
    }

    pub(crate) fn maybe_text(&self, name: &str) -> Result<Option<&str>, ConvertError> {
        self.maybe(name, Value::as_str, "a name")
    }

    pub(crate) fn texts(&self, name: &str) -> Result<Option<Vec<&str>>, ConvertError> {
        let read = |value| {
            let list: &Vec<Value> = Value::as_array(value)?;
            list.iter().map(Value::as_str).collect()
        };
        self.maybe(name, read, "a list of names")
    }

    /// Refuses any value of `name` but `value` (or null, or none).
    pub(crate) fn expect(&self, name: &str, value: bool) -> Result<(), ConvertError> {
        if self.flag(name, value)? == value {
            return Ok(());
        }
        Err(self.wrong(
            name,
            "which changes the logits in a way that nextword does not have",
        ))
    }

    /// Refuses what was not asked for, unless it is null or known to leave the logits alone.
    pub(crate) fn finish(&self) -> Result<(), ConvertError> {
        let seen = self.seen.borrow();
        for (name, value) in &self.map {
            let harmless = self.within.is_empty() && HARMLESS.contains(&name.as_str());
            if !seen.contains(name) && !value.is_null() && !harmless {
                return Err(self.wrong(
                    name,
                    "a field that nextword does not know; it may change the logits",
                ));
            }
        }
        Ok(())
    }
}
