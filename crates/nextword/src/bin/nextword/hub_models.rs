//! Downloads models from the Hugging Face Hub, with progress on standard error.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nextword_hub::{Hub, HubEvent, HubReference, HubSettings};
use nextword_model::ModelOrigin;

use crate::format::{bytes, duration, sanitize};
use crate::output;

/// Minimum time between two progress updates.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Number of digits of a commit in messages.
const SHORT_COMMIT: usize = 12;

/// Downloads the model that `reference` names into the cache, unless it is there. Returns the folder or file to
/// import to `out`, and where it comes from. Configuration, tokenizer and `out` are checked before the weights are
/// downloaded.
pub(crate) fn download(
    reference: &HubReference,
    out: &Path,
) -> anyhow::Result<(PathBuf, ModelOrigin)> {
    let hub = Hub::new(HubSettings::from_env()?)?;
    let mut reporter = DownloadReporter::new();
    let found = fetch(&hub, reference, out, &mut reporter);
    output::eprint_progress("");
    let (path, origin) = found?;
    output::eprint_line(&sanitize(&reporter.summary(&origin)));
    Ok((path, origin))
}

fn fetch(
    hub: &Hub,
    reference: &HubReference,
    out: &Path,
    reporter: &mut DownloadReporter,
) -> anyhow::Result<(PathBuf, ModelOrigin)> {
    let mut on_event = |event: &HubEvent<'_>| reporter.report(event);
    let repository = hub.open(reference, &mut on_event)?;
    if let Some(folder) = repository.settings(&mut on_event)? {
        nextword_convert::check_settings(&folder, out)?;
    }
    let path = repository.weights(&mut on_event)?;
    let origin = ModelOrigin {
        repository: reference.repository.clone(),
        commit: repository.commit().to_string(),
        file: reference.file.clone(),
    };
    Ok((path, origin))
}

/// Prints what happens during a download.
struct DownloadReporter {
    start: Instant,
    last_update: Option<Instant>,
    /// The file that is downloaded, and the last number of bytes in its events.
    position: Option<(String, u64)>,
    /// Bytes that were downloaded.
    received: u64,
}

impl DownloadReporter {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last_update: None,
            position: None,
            received: 0,
        }
    }

    fn report(&mut self, event: &HubEvent<'_>) {
        match event {
            HubEvent::Progress { file, bytes, total } => self.progress(file, *bytes, *total),
            HubEvent::Waiting { file } => print_note(&format!(
                "note: another process downloads `{file}`; waiting for it"
            )),
            HubEvent::Retry { problem, delay } => print_note(&format!(
                "note: {problem}; trying again in {}",
                duration(delay.as_secs_f64())
            )),
            HubEvent::UsingCache { problem, commit } => print_note(&format!(
                "note: {problem}; using the files in the cache (commit {})",
                short(commit)
            )),
            _ => {}
        }
    }

    fn progress(&mut self, file: &str, count: u64, total: u64) {
        match &mut self.position {
            // The count falls when a download starts over.
            Some((name, last)) if name == file => {
                self.received += count.saturating_sub(*last);
                *last = count;
            }
            // What is there at first was downloaded earlier.
            position => *position = Some((file.to_string(), count)),
        }
        let is_due = self
            .last_update
            .is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL);
        if is_due {
            self.last_update = Some(Instant::now());
            let line = progress_line(file, count, total, self.received, self.start.elapsed());
            output::eprint_progress(&sanitize(&line));
        }
    }

    fn summary(&self, origin: &ModelOrigin) -> String {
        let ModelOrigin {
            repository, commit, ..
        } = origin;
        let what = match self.received {
            0 => "all files are in the cache".to_string(),
            count => format!(
                "downloaded {} in {}",
                bytes(count),
                duration(self.start.elapsed().as_secs_f64())
            ),
        };
        format!("{repository} at commit {}: {what}", short(commit))
    }
}

/// Prints a line in place of the progress line.
fn print_note(text: &str) {
    output::eprint_progress("");
    output::eprint_line(&sanitize(text));
}

fn short(commit: &str) -> &str {
    commit.get(..SHORT_COMMIT).unwrap_or(commit)
}

/// `count` of `total` bytes are there, of which `received` arrived in the time `elapsed`.
fn progress_line(file: &str, count: u64, total: u64, received: u64, elapsed: Duration) -> String {
    let percent = 100 * u128::from(count) / u128::from(total.max(1));
    let speed = received as f64 / elapsed.as_secs_f64().max(1e-3);
    let speed = if received == 0 {
        String::new()
    } else {
        let left = total.saturating_sub(count) as f64 / speed;
        format!(", {}/s, {} left", bytes(speed as u64), duration(left))
    };
    format!(
        "downloading {file}: {} of {} ({percent}%){speed}",
        bytes(count),
        bytes(total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_file_share_speed_and_time_left() {
        let line = |count, received, seconds| {
            progress_line(
                "x",
                count,
                200 << 20,
                received,
                Duration::from_secs(seconds),
            )
        };
        assert_eq!(line(0, 0, 1), "downloading x: 0 B of 200 MiB (0%)");
        let half = "downloading x: 100 MiB of 200 MiB (50%), 10 MiB/s, 10s left";
        assert_eq!(line(100 << 20, 50 << 20, 5), half);
        assert!(progress_line("x", u64::MAX, 0, 1, Duration::ZERO).contains('%'));
    }

    #[test]
    fn only_bytes_that_arrived_are_counted() {
        let mut reporter = DownloadReporter::new();
        for (file, count) in [
            ("a", 0),
            ("a", 10),
            ("b", 40),
            ("b", 50),
            ("b", 10),
            ("b", 20),
        ] {
            reporter.progress(file, count, 100);
        }
        assert_eq!(reporter.received, 10 + 10 + 10);
    }
}
