//! Progress as text.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nextword_train::{
    OtherTextLoss, Outcome, Progress, Reporter, RunInfo, StepReport, ValidationReport,
};

use super::lines::{
    ModelUse, completion_block, completions_part, end_lines, other_text_part, rewards_line,
    sample_block, start_lines, step_line,
};
use super::progress::{Pacing, progress_line};
use crate::output;

/// Width of the terminal if it does not tell.
const DEFAULT_COLUMNS: usize = 80;

/// Minimum width of a terminal that shows a bar before the text.
const MIN_BAR_COLUMNS: usize = 60;

/// Columns of the bar with the space after it, and of a free one at the end of the line.
const BAR_COLUMNS: usize = 12;

/// Width of standard error's terminal.
fn columns() -> usize {
    let size = terminal_size::terminal_size_of(std::io::stderr());
    size.map_or(DEFAULT_COLUMNS, |(width, _)| usize::from(width.0))
}

/// Room for the text of the progress line.
fn message_columns() -> usize {
    match columns() {
        wide @ MIN_BAR_COLUMNS.. => wide - BAR_COLUMNS,
        narrow => narrow.saturating_sub(1),
    }
}

/// Writes to standard error: a progress bar on a terminal, plain lines otherwise.
pub(super) struct TerminalReporter {
    bar: Option<ProgressBar>,
    /// The latest validation loss.
    validation: Option<f64>,
    /// A prompt for the commands suggested at the end.
    prompt: Option<String>,
    /// What the model is for.
    model_use: ModelUse,
    /// Number of updates made before this process resumed the run.
    resumed_at: u64,
    /// The run's prompt template.
    prompt_template: Option<String>,
    /// The line of the last logged update.
    line: String,
    pacing: Pacing,
    interactive: bool,
}

impl TerminalReporter {
    pub(super) fn new() -> Self {
        Self {
            bar: None,
            validation: None,
            prompt: None,
            model_use: ModelUse::default(),
            resumed_at: 0,
            prompt_template: None,
            line: String::new(),
            pacing: Pacing::default(),
            interactive: std::io::stderr().is_terminal(),
        }
    }

    /// Prints a permanent line, above the bar if there is one.
    fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::eprint_line(line)),
            None => output::eprint_line(line),
        }
    }
}

impl Reporter for TerminalReporter {
    fn started(&mut self, info: &RunInfo) {
        self.prompt_template.clone_from(&info.prompt_template);
        self.prompt.clone_from(&info.prompt);
        self.model_use = ModelUse::of(info);
        self.resumed_at = info.resumed_at;
        for line in start_lines(info) {
            self.print(&line);
        }
        if self.interactive {
            let bar = ProgressBar::with_draw_target(Some(info.steps), ProgressDrawTarget::stderr());
            // `wide_msg` truncates the line on a narrow terminal, so that it is redrawn cleanly.
            let template = match columns() {
                MIN_BAR_COLUMNS.. => "{bar:10} {wide_msg}",
                _ => "{wide_msg}",
            };
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(info.resumed_at);
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
    }

    fn preparing(&mut self, message: &str) {
        self.print(message);
    }

    fn progressed(&mut self, progress: &Progress<'_>) {
        match &self.bar {
            Some(bar) => bar.set_message(progress_line(progress)),
            None if self.pacing.is_due(progress, Instant::now()) => {
                self.print(&progress_line(progress));
            }
            None => {}
        }
    }

    fn stepped(&mut self, report: &StepReport, logged: bool) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(report.step);
                if logged {
                    self.line = step_line(report, self.validation, message_columns());
                }
                // Also after a validation, whose progress it has shown.
                bar.set_message(self.line.clone());
            }
            None if logged => self.print(&step_line(report, self.validation, usize::MAX)),
            None => {}
        }
    }

    fn validated(&mut self, report: &ValidationReport) {
        self.validation = Some(report.loss);
        let best = if report.loss <= report.best {
            "  (best so far)"
        } else {
            ""
        };
        self.print(&format!(
            "step {}  validation loss {:.4}{best}{}",
            report.step,
            report.loss,
            completions_part(report)
        ));
        if let Some(line) = rewards_line(report) {
            self.print(&line);
        }
    }

    fn measured_other_text(&mut self, step: u64, losses: &[OtherTextLoss]) {
        self.print(&format!(
            "step {step}  loss of other text: {}",
            other_text_part(losses)
        ));
    }

    fn completed(&mut self, step: u64, prompt: &str, text: &str, wanted: &str) {
        self.print(&completion_block(step, prompt, text, wanted));
    }

    fn sampled(&mut self, step: u64, prompt: &str, text: &str) {
        let block = match &self.prompt_template {
            // The completion does not continue the prompt directly.
            Some(template) => {
                let formatted = template.replace(nextword_generate::PROMPT_PLACEHOLDER, prompt);
                sample_block(step, &formatted, &format!(" {text}"))
            }
            None => sample_block(step, prompt, text),
        };
        self.print(&block);
    }

    fn saved(&mut self, _step: u64, path: &Path) {
        self.print(&format!("saved {}", path.display()));
    }

    fn warned(&mut self, message: &str) {
        self.print(&format!("warning: {message}"));
    }

    fn ended(&mut self, outcome: &Outcome) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let prompt = self.prompt.as_deref();
        for line in end_lines(outcome, self.resumed_at, prompt, self.model_use) {
            self.print(&line);
        }
    }
}
