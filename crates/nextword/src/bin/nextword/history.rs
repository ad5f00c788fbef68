//! Loads the training history of a run's probe sentences from its folder.

use std::path::Path;

use nextword_explain::history::{ProbeStep, TrainingHistory};
use nextword_train::MetricsLine;

use crate::{exit, models};

/// Returns whether `run` recorded probe sentences.
pub(crate) fn exists(run: &Path) -> bool {
    models::is_run(run) && run.join("probes").is_dir()
}

/// Loads a run's probe snapshots and training losses.
///
/// # Errors
/// If the run has no probe snapshots; the message explains how to record them.
pub(crate) fn load(run: &Path) -> anyhow::Result<TrainingHistory> {
    let (folder, shown) = (run.join("probes"), run.display());
    if !exists(run) {
        return Err(exit::bad_file(format!(
            "`{shown}` has no probe snapshots; hint: train with --set \
             'probes.sentences=[\"a sentence\"]'"
        )));
    }
    let mut snapshots = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        let snapshot: ProbeStep = serde_json::from_str(&text).map_err(|e| {
            exit::bad_file(format!(
                "{}: not a valid probe snapshot: {e}",
                file.display()
            ))
        })?;
        snapshots.push(snapshot);
    }
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let losses = metrics.lines().filter_map(|line| {
        let line: MetricsLine = serde_json::from_str(line).ok()?;
        Some((line.step, line.loss?))
    });
    Ok(TrainingHistory::from_probes(
        snapshots,
        &losses.collect::<Vec<_>>(),
    ))
}
