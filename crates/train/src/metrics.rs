//! `metrics.jsonl`: training and validation metrics, one JSON object per line.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{PreferenceMetrics, TrainError};

/// One line of `metrics.jsonl`, for an update or a validation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsLine {
    /// Updates made, including this one.
    pub step: u64,
    /// Tokens trained on so far: the targets, without padding.
    pub tokens: u64,
    /// Training loss of this update, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Validation loss after this update, nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// The losses of the texts of `validation.also`, by name, nats per token.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub other_text: BTreeMap<String, f64>,
    /// The share of completions of held-out conversations that ended by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<f64>,
    /// The share of short messages of held-out conversations that the model completes exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<f64>,
    /// Rewards and log probabilities of this update or validation, in runs on preferences.
    #[serde(flatten)]
    pub preferences: PreferenceMetrics,
    /// Learning rate of this update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Global norm of the gradients before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens per second since the previous line, excluding validation and saving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// The share of the time of those updates for which rank 0 waited for other ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_share: Option<f64>,
    /// Resident memory of rank 0's process, bytes; `None` where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Seconds of training so far, including those before a resume.
    pub elapsed: f64,
}

/// The open `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl MetricsFile {
    /// Opens the file and truncates it to `bytes`. The lines after that belong to steps that will be
    /// repeated.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self, TrainError> {
        let io = |source| TrainError::io(path, "write")(source);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(io)?;
        let bytes = bytes.min(file.metadata().map_err(io)?.len());
        file.set_len(bytes).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            bytes,
        })
    }

    /// Appends a line.
    pub(crate) fn write(&mut self, line: &MetricsLine) -> Result<(), TrainError> {
        // The line contains only numbers, so serialization cannot fail.
        let mut json = serde_json::to_string(line).unwrap_or_default();
        json.push('\n');
        self.file
            .write_all(json.as_bytes())
            .map_err(TrainError::io(&self.path, "write"))?;
        self.bytes += json.len() as u64;
        Ok(())
    }

    /// Syncs the file to disk and returns its length, which a checkpoint stores.
    pub(crate) fn sync(&mut self) -> Result<u64, TrainError> {
        self.file
            .sync_data()
            .map_err(TrainError::io(&self.path, "write"))?;
        Ok(self.bytes)
    }
}
