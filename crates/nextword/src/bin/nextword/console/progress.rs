//! The progress of long parts of a run other than its updates.

use std::time::{Duration, Instant};

use nextword_train::Progress;

use crate::format::sanitize;

/// Time between two lines, and before the first one.
const INTERVAL: Duration = Duration::from_secs(10);

/// Formats the progress: `validation 12/340`.
pub(super) fn progress_line(progress: &Progress<'_>) -> String {
    let Progress { what, done, total } = progress;
    format!("{} {done}/{total}", sanitize(what))
}

/// Selects what is printed as lines: nothing of what takes less than the interval.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    what: String,
    next: Option<Instant>,
}

impl Pacing {
    /// Whether a line is due `now`.
    pub(super) fn is_due(&mut self, progress: &Progress<'_>, now: Instant) -> bool {
        let is_new = self.what != progress.what || progress.done == 0;
        if is_new {
            self.what = progress.what.to_string();
        }
        let is_due = !is_new && self.next.is_some_and(|next| now >= next);
        if is_new || is_due {
            self.next = Some(now + INTERVAL);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_long_is_printed_and_not_often() {
        let start = Instant::now();
        let mut pacing = Pacing::default();
        let mut is_due = |what, done, seconds| {
            let progress = Progress {
                what,
                done,
                total: 9,
            };
            pacing.is_due(&progress, start + Duration::from_secs(seconds))
        };
        let due = [
            is_due("validation", 0, 0),
            is_due("validation", 1, 9),
            is_due("validation", 2, 11),
            is_due("validation", 3, 12),
            is_due("validation", 4, 22),
            is_due("samples", 0, 40), // it has just begun
            is_due("samples", 1, 49),
            is_due("validation", 0, 60),
            is_due("validation", 1, 61),
        ];
        assert_eq!(
            due,
            [false, false, true, false, true, false, false, false, false]
        );
        let progress = Progress {
            what: "loss of a\u{1b}[31mb",
            done: 3,
            total: 9,
        };
        let line = progress_line(&progress);
        assert!(line.ends_with(" 3/9") && !line.contains('\u{1b}'), "{line}");
    }
}
