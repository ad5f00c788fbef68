//! Checkpoints: training state on disk, written atomically and verified when read.
//!
//! A checkpoint is the folder `checkpoints/step-00001200` of a run: a model folder (weights, config, tokenizer, card),
//! or for a run with `[lora]` an adapter folder, plus `optimizer.safetensors`, `state.json` and, written last,
//! `MANIFEST.json` with the size and sha256 of every other file. It is written under a temporary name, synced, and
//! renamed.

mod load;
mod retention;
mod save;

use std::collections::BTreeMap;

use nextword_model::BaseModel;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use load::{Checkpoint, DamagedCheckpoint, newest};
pub use retention::{prune, quarantine, remove_temp_folders};
pub(crate) use save::{MomentSource, save_model, save_trained_adapter};
pub use save::{save, save_adapter};

/// Format version of `state.json` and `MANIFEST.json`.
const FORMAT: u32 = 1;

const MANIFEST: &str = "MANIFEST.json";
const WEIGHTS: &str = "model.safetensors";
const ADAPTER: &str = "adapter.json";
const ADAPTER_WEIGHTS: &str = "adapter.safetensors";
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
pub(crate) const TEMP_PREFIX: &str = ".tmp-";

/// Everything besides weights and moments that a run needs to resume bit for bit. Data order, dropout
/// and samples are pure functions of the seed and the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Format version.
    pub format: u32,
    /// Number of optimizer updates made.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// The run's seed, which determines data order, dropout masks and samples.
    pub seed: u64,
    /// Identifies the data: a run resumes only with the same data.
    pub data: String,
    /// Fingerprint of the settings that a resumed run must share. Checkpoints of version 0.1 contain a
    /// hash of the whole configuration instead.
    #[serde(rename = "identity")]
    pub fingerprint: String,
    /// Those settings that differ from their defaults, to name the changes; `None` in checkpoints of
    /// version 0.1.
    #[serde(default)]
    pub settings: Option<BTreeMap<String, Value>>,
    /// The model that the run adapts; `None` if it trains all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseModel>,
    /// Length of `metrics.jsonl` in bytes. Lines after that belong to steps that will be repeated.
    pub metrics_bytes: u64,
    /// Seconds of training so far.
    pub elapsed: f64,
    /// The last training loss.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub validation: Option<f64>,
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// Number of validations since the lowest loss.
    pub since_best: u64,
    /// The losses of the texts of `validation.also` before the first step, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_text: BTreeMap<String, f64>,
    /// Their last losses, by name; absent in checkpoints of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last_other_text: BTreeMap<String, f64>,
    /// SHA-256 of the log probabilities of the reference, in runs on preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What a stop left out after the last update: the resumed run begins with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<AfterUpdate>,
}

/// What a run does after an update, when due, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterUpdate {
    /// Computes the validation loss, and completes held-out data.
    Validation,
    /// Computes the losses of the texts of `validation.also`.
    OtherText,
    /// Generates samples, probes sentences, and saves.
    Samples,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: Vec<ManifestEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ManifestEntry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// The folder name of the checkpoint of `step`. Names sort by step.
fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Parses the step from the folder name of a checkpoint.
fn parse_step(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}
