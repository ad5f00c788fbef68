//! The metrics of a run, as it wrote them.

use std::fs;
use std::path::Path;

use nextword_train::MetricsLine;

use crate::ExperimentError;

/// Reads the `metrics.jsonl` in `path`, oldest line first. An incomplete last line, which a run may still be writing, is
/// left out.
///
/// # Errors
/// [`ExperimentError::Path`] if the file cannot be read, [`ExperimentError::Sweep`] for an invalid line.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("metrics.jsonl");
/// std::fs::write(&path, "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"lo")?;
/// let lines = nextword_experiments::read_metrics(&path)?;
/// assert_eq!((lines.len(), lines[0].loss), (1, Some(2.5)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsLine>, ExperimentError> {
    let text = fs::read_to_string(path).map_err(ExperimentError::io(path, "read"))?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            let place = format!("line {}: invalid metrics: {error}", number + 1);
            ExperimentError::sweep(path, format!("{place}; hint: remove this line"))
        })
    };
    complete.lines().enumerate().map(parse).collect()
}
