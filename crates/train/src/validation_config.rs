//! The table `[validation]` of a configuration.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::TrainError;

/// The default of `validation.completions`.
const DEFAULT_COMPLETIONS: usize = 16;

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde calls.
fn is_default_completions(count: &usize) -> bool {
    *count == DEFAULT_COMPLETIONS
}

/// Validation and early stopping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Updates between two validations; 0 validates at the end only.
    pub every: u64,
    /// Number of windows, the same each time, spread over the split; 0 is the whole split.
    pub windows: usize,
    /// Sequences per batch.
    pub batch_size: usize,
    /// Maximum number of held-out conversations or pairs whose last message or target the model generates at each
    /// validation, to compare it with the one there; 0 disables it.
    #[serde(skip_serializing_if = "is_default_completions")]
    pub completions: usize,
    /// Early stopping: stop after this many consecutive validations without an improvement; 0 disables it.
    pub patience: u64,
    /// Other texts whose loss is computed before the first step and at each validation, to see what the model forgets: a
    /// table or a list of tables.
    #[serde(deserialize_with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<OtherText>,
}

/// A text that the run does not train on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherText {
    /// Its name in reports.
    pub name: String,
    /// A `.txt` or `.jsonl` file, or a folder of them.
    pub path: PathBuf,
}

/// Reads a table or a list of tables.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OtherText>, D::Error> {
    let expected = "a table such as { name = \"general\", path = \"text.txt\" }, or a list of them";
    nextword_data::one_or_several(deserializer, expected)
}

impl ValidationConfig {
    /// Resolves the relative paths of [`also`](Self::also) against `base`.
    pub(crate) fn resolve_paths(&mut self, base: &Path) {
        for text in &mut self.also {
            if text.path.is_relative() {
                text.path = base.join(&text.path);
            }
        }
    }

    pub(crate) fn validate(&self) -> Result<(), TrainError> {
        for (number, text) in self.also.iter().enumerate() {
            let earlier = &self.also[..number];
            if text.name.is_empty() || earlier.iter().any(|other| other.name == text.name) {
                return Err(TrainError::config(
                    "validation.also",
                    format!("the name {:?} is empty or occurs twice", text.name),
                    "give each text a name of its own",
                ));
            }
        }
        Ok(())
    }
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every: 250,
            windows: 0,
            batch_size: 16,
            completions: DEFAULT_COMPLETIONS,
            patience: 0,
            also: Vec::new(),
        }
    }
}
