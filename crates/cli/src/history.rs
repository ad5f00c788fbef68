//! What a run kept of its probe sentences, from its folder.

use std::path::Path;

use nextword_explain::learning::{Learning, StepRecord};
use nextword_train::MetricsLine;

use crate::{exit, records};

/// Whether a run kept anything.
pub(crate) fn is_kept(run: &Path) -> bool {
    records::is_run(run) && run.join("probes").is_dir()
}

/// Reads a run's looks and its training losses.
///
/// # Errors
/// If there are none, with how to get some.
pub(crate) fn read(run: &Path) -> anyhow::Result<Learning> {
    let (folder, shown) = (run.join("probes"), run.display());
    if !is_kept(run) {
        return Err(exit::bad_file(format!(
            "`{shown}` kept nothing of what its model made of a sentence; hint: train with --set \
             'probes.sentences=[\"a sentence\"]'"
        )));
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        let record: StepRecord = serde_json::from_str(&text).map_err(|e| {
            exit::bad_file(format!("{}: no look at a sentence: {e}", file.display()))
        })?;
        found.push(record);
    }
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let losses = metrics.lines().filter_map(|line| {
        let line: MetricsLine = serde_json::from_str(line).ok()?;
        Some((line.step, line.loss?))
    });
    Ok(Learning::of(found, &losses.collect::<Vec<_>>()))
}
