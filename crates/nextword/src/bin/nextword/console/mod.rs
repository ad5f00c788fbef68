//! Reports a run's progress: as text on standard error, or as JSON on standard output.

mod json;
mod lines;
mod shell;
mod terminal;

use nextword_train::{Reporter, RunInfo};

use crate::output;

use json::JsonReporter;
pub(crate) use shell::{program, resume_hint, shell_quote};
use terminal::TerminalReporter;

/// Returns the reporter that the flags select.
pub(crate) fn reporter(quiet: bool, json: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(JsonReporter)
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
