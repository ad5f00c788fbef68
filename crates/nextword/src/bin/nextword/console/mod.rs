//! Reports a run's progress: as text on standard error, or as JSON on standard output.

mod json;
mod lines;
mod progress;
mod shell;
mod terminal;

use std::io::IsTerminal;

use nextword_train::{Reporter, RunInfo};

use crate::output;

use json::JsonReporter;
pub(crate) use shell::{program, resume_hint, shell_quote};
use terminal::TerminalReporter;

/// Width of a drawing in columns if `COLUMNS` is not set.
const DEFAULT_COLUMNS: usize = 80;

/// Width of drawings on standard output.
pub(crate) fn columns() -> usize {
    let columns = std::env::var("COLUMNS").ok();
    let columns = columns.and_then(|columns| columns.parse().ok());
    columns.unwrap_or(DEFAULT_COLUMNS)
}

/// Whether text on standard output may have colors.
pub(crate) fn has_colors() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Returns the reporter that the flags select.
pub(crate) fn reporter(quiet: bool, json: bool) -> Box<dyn Reporter> {
    if json {
        Box::<JsonReporter>::default()
    } else if quiet {
        Box::new(QuietReporter)
    } else {
        Box::new(TerminalReporter::new())
    }
}

/// Prints only warnings.
struct QuietReporter;

impl Reporter for QuietReporter {
    fn started(&mut self, info: &RunInfo) {
        warn_skipped(info);
    }

    fn warned(&mut self, message: &str) {
        output::eprint_line(&format!("warning: {message}"));
    }
}

fn warn_skipped(info: &RunInfo) {
    for skipped in &info.skipped {
        output::eprint_line(&format!("warning: skipped a checkpoint: {skipped}"));
    }
}
