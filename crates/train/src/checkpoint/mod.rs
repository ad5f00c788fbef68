//! Training state on disk: written as a whole or not at all, found again only if it is sound.
//!
//! A checkpoint is the folder `checkpoints/step-00001200` of a run: a record (weights, config,
//! tokenizer, card) plus `optimizer.safetensors`, `state.json` and, written last, `MANIFEST.json`
//! with the size and sha256 of every other file. It is made under another name, synced, and renamed.

mod load;
mod retention;
mod save;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use load::{Checkpoint, Skipped, newest};
pub use retention::{prune, remove_leftovers, set_aside};
pub use save::save;

/// Format number of `state.json` and `MANIFEST.json`.
const FORMAT: u32 = 1;

const MANIFEST: &str = "MANIFEST.json";
const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const LEFTOVER: &str = ".tmp-";

/// Everything that a run needs beside weights and moments to go on as if it had never stopped.
/// Data order, dropout and samples are pure functions of the seed and the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Format number.
    pub format: u32,
    /// Updates made.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// The run's seed, from which order, masks and samples follow.
    pub seed: u64,
    /// What the data was: a run goes on only with the same.
    pub data: String,
    /// Fingerprint of the settings that a resumed run must share. Checkpoints of version 0.1 hold a hash
    /// of the whole configuration instead.
    pub identity: String,
    /// Those settings that are not at their defaults, to name what has changed; `None` in checkpoints
    /// of version 0.1.
    #[serde(default)]
    pub settings: Option<BTreeMap<String, Value>>,
    /// Length of `metrics.jsonl`; what stands behind it belongs to steps that will be made again.
    pub metrics_bytes: u64,
    /// Seconds of training so far.
    pub elapsed: f64,
    /// The last training loss.
    pub loss: Option<f64>,
    /// The last validation loss.
    pub validation: Option<f64>,
    /// The lowest validation loss.
    pub best: Option<f64>,
    /// Measurements since the lowest.
    pub since_best: u64,
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

/// The name of the checkpoint of `step`: names sort as steps do.
fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step that a checkpoint's folder name tells.
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

pub(crate) fn hex_sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(bytes))
}
