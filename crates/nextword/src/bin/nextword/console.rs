//! Reports a run's progress: as text on standard error, or as JSON on standard output.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nextword_train::{Outcome, Reporter, RunInfo, StepReport, StopReason, ValidationReport};
use serde_json::{Value, json};

use crate::format::{count, duration, grouped, sanitize, short};
use crate::output;

/// Returns the reporter that the flags select.
pub(crate) fn reporter(quiet: bool, json: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(JsonReporter)
    } else if quiet {
        Box::new(QuietReporter)
    } else {
        Box::new(ConsoleReporter::new())
    }
}

/// Writes to standard error: a progress bar on a terminal, plain lines otherwise.
struct ConsoleReporter {
    bar: Option<ProgressBar>,
    /// The latest validation loss.
    validation: Option<f64>,
    /// The first sampled prompt, for the commands suggested at the end.
    prompt: Option<String>,
    /// The run's prompt template.
    prompt_template: Option<String>,
    interactive: bool,
}

impl ConsoleReporter {
    fn new() -> Self {
        Self {
            bar: None,
            validation: None,
            prompt: None,
            prompt_template: None,
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

impl Reporter for ConsoleReporter {
    fn started(&mut self, info: &RunInfo) {
        self.prompt_template.clone_from(&info.prompt_template);
        for line in start_lines(info) {
            self.print(&line);
        }
        if self.interactive {
            let bar = ProgressBar::with_draw_target(Some(info.steps), ProgressDrawTarget::stderr());
            // `wide_msg` truncates the line on a narrow terminal, so that it is redrawn cleanly.
            let style = ProgressStyle::with_template("{bar:10} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(info.resumed_at);
            bar.enable_steady_tick(Duration::from_millis(500));
            self.bar = Some(bar);
        }
    }

    fn stepped(&mut self, report: &StepReport, logged: bool) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(report.step);
                if logged {
                    bar.set_message(step_line(report, self.validation));
                }
            }
            None if logged => self.print(&step_line(report, self.validation)),
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
            "step {}  validation loss {:.4}{best}",
            report.step, report.loss
        ));
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
        self.prompt.get_or_insert_with(|| prompt.to_string());
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
        for line in end_lines(outcome, self.prompt.as_deref()) {
            self.print(&line);
        }
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

/// Prints one JSON object per line to standard output; warnings also go to standard error.
struct JsonReporter;

impl JsonReporter {
    /// Ignores write errors: a closed standard output does not stop a run.
    #[allow(clippy::needless_pass_by_value)] // `json!` returns values.
    fn write(value: Value) {
        let _ = output::print_json(&value);
    }
}

impl Reporter for JsonReporter {
    fn started(&mut self, info: &RunInfo) {
        warn_skipped(info);
        Self::write(json!({
            "event": "started", "name": info.name, "folder": info.folder, "device": info.device,
            "parameters": info.parameters, "vocab_size": info.vocab_size,
            "train_tokens": info.train_tokens, "validation_tokens": info.validation_tokens,
            "steps": info.steps, "tokens_per_step": info.tokens_per_step,
            "resumed_at": info.resumed_at, "skipped": info.skipped,
        }));
    }

    fn stepped(&mut self, report: &StepReport, logged: bool) {
        if logged {
            Self::write(json!({
                "event": "step", "step": report.step, "steps": report.steps, "loss": report.loss,
                "lr": report.learning_rate, "grad_norm": report.grad_norm,
                "tokens_per_second": report.tokens_per_second, "eta": report.eta,
            }));
        }
    }

    fn validated(&mut self, report: &ValidationReport) {
        Self::write(json!({
            "event": "validation", "step": report.step, "val_loss": report.loss,
            "best": report.best, "tokens": report.tokens, "seconds": report.seconds,
        }));
    }

    fn sampled(&mut self, step: u64, prompt: &str, text: &str) {
        Self::write(json!({"event": "sample", "step": step, "prompt": prompt, "text": text}));
    }

    fn saved(&mut self, step: u64, path: &Path) {
        Self::write(json!({"event": "checkpoint", "step": step, "path": path}));
    }

    fn warned(&mut self, message: &str) {
        output::eprint_line(&format!("warning: {message}"));
        Self::write(json!({"event": "warning", "message": message}));
    }

    fn ended(&mut self, outcome: &Outcome) {
        let reason = match outcome.reason {
            StopReason::Finished => "finished",
            StopReason::EarlyStopped => "patience",
            StopReason::Interrupted => "interrupted",
        };
        Self::write(json!({
            "event": "ended", "reason": reason, "step": outcome.step, "loss": outcome.loss,
            "val_loss": outcome.validation, "best": outcome.best, "elapsed": outcome.elapsed,
            "folder": outcome.folder,
        }));
    }
}

fn warn_skipped(info: &RunInfo) {
    for skipped in &info.skipped {
        output::eprint_line(&format!("warning: skipped a checkpoint: {skipped}"));
    }
}

/// Returns the lines printed at the start of a run.
fn start_lines(info: &RunInfo) -> Vec<String> {
    let mut lines: Vec<String> = info
        .skipped
        .iter()
        .map(|skipped| format!("warning: skipped a checkpoint: {skipped}"))
        .collect();
    lines.push(format!(
        "{}: {} on {}, vocabulary {}, {} training and {}",
        info.name,
        count(info.parameters as u64, "parameter"),
        info.device,
        grouped(info.vocab_size as u64),
        grouped(info.train_tokens as u64),
        count(info.validation_tokens as u64, "validation token"),
    ));
    let resumed = match info.resumed_at {
        0 => String::new(),
        step => format!(", continuing from step {step}"),
    };
    lines.push(format!(
        "{} of {} into {}{resumed}",
        count(info.steps, "step"),
        count(info.tokens_per_step as u64, "token"),
        info.folder.display()
    ));
    if info.resumed_at >= info.steps {
        lines.push(
            "all steps are already done; hint: train further with --set train.steps=N".to_string(),
        );
    }
    lines
}

/// Formats a step: `step 1200/5000  24%  loss 2.113  val 2.201  lr 3.0e-4  gnorm 0.81  41.2k tok/s  eta 6m12s`.
fn step_line(report: &StepReport, validation: Option<f64>) -> String {
    let percent = 100 * report.step / report.steps.max(1);
    let validation = validation.map_or_else(String::new, |loss| format!("  val {loss:.3}"));
    format!(
        "step {}/{}  {percent}%  loss {:.3}{validation}  lr {:.1e}  gnorm {:.2}  {} tok/s  eta {}",
        report.step,
        report.steps,
        report.loss,
        report.learning_rate,
        report.grad_norm,
        short(report.tokens_per_second),
        duration(report.eta),
    )
}

/// Formats a sample with its prompt, indented.
fn sample_block(step: u64, prompt: &str, text: &str) -> String {
    let text = sanitize(&format!("{prompt}{text}"));
    let mut block = format!("sample at step {step}:");
    for line in text.trim_end().lines() {
        block.push_str("\n    ");
        block.push_str(line);
    }
    block
}

/// Returns the lines printed at the end of a run: its result and what to do next.
fn end_lines(outcome: &Outcome, prompt: Option<&str>) -> Vec<String> {
    let result = match outcome.reason {
        StopReason::Finished => "done",
        StopReason::EarlyStopped => "stopped early: the validation loss stopped improving",
        StopReason::Interrupted => "interrupted and saved",
    };
    let format_loss = |name: &str, loss: Option<f64>| {
        loss.map_or_else(String::new, |loss| format!(", {name} {loss:.4}"))
    };
    let first = format!(
        "{result}: step {}{}{}{} in {}",
        outcome.step,
        format_loss("loss", outcome.loss),
        format_loss("validation loss", outcome.validation),
        format_loss("best", outcome.best),
        duration(outcome.elapsed),
    );
    let folder = shell_quote(&outcome.folder.display().to_string());
    let mut lines = vec![first];
    if outcome.reason != StopReason::Interrupted {
        lines.push("next:".to_string());
        let program = program();
        let prompt = shell_quote(prompt.map_or("...", str::trim));
        lines.push(format!("    {program} generate {folder} {prompt}"));
        lines.push(format!("    {program} explain {folder} {prompt}"));
        lines.push(format!("    {program} plot {folder}"));
    }
    lines
}

/// Returns the command that resumes the run in `folder`.
pub(crate) fn resume_hint(folder: &Path) -> String {
    let folder = shell_quote(&folder.display().to_string());
    format!("resume with: {} resume {folder}", program())
}

/// Returns how to call this program: the path it was called by, or its name if it is on `PATH`.
fn program() -> String {
    let path = std::env::args().next().unwrap_or_default();
    if cfg!(not(test)) && path.contains(std::path::MAIN_SEPARATOR) {
        shell_quote(&path)
    } else {
        "nextword".to_string()
    }
}

/// Quotes `text` as one word of a shell command line.
fn shell_quote(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%~".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_string()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> StepReport {
        StepReport {
            step: 1200,
            steps: 5000,
            loss: 2.1134,
            learning_rate: 3e-4,
            grad_norm: 0.811,
            tokens_per_second: 41_234.0,
            eta: 372.2,
        }
    }

    fn outcome(reason: StopReason) -> Outcome {
        Outcome {
            reason,
            step: 7,
            loss: Some(2.0),
            best: Some(1.5),
            validation: None,
            elapsed: 61.0,
            folder: "runs/my run".into(),
        }
    }

    #[test]
    fn step_line_shows_all_fields() {
        assert_eq!(
            step_line(&report(), Some(2.2009)),
            "step 1200/5000  24%  loss 2.113  val 2.201  lr 3.0e-4  gnorm 0.81  41.2k tok/s  eta 6m12s"
        );
        assert!(!step_line(&report(), None).contains("val"));
    }

    #[test]
    fn samples_are_indented_and_sanitized() {
        let block = sample_block(10, "Once", " upon\x1b[2J\na time\n\n");
        assert_eq!(
            block,
            "sample at step 10:\n    Once upon\u{fffd}[2J\n    a time"
        );
    }

    #[test]
    fn end_of_run_suggests_next_commands() {
        let lines = end_lines(&outcome(StopReason::Finished), Some("One day")).join("\n");
        assert!(
            lines.starts_with("done: step 7, loss 2.0000, best 1.5000 in 1m01s"),
            "{lines}"
        );
        assert!(
            lines.contains("nextword generate 'runs/my run' 'One day'"),
            "{lines}"
        );
        assert!(lines.contains("nextword plot 'runs/my run'"), "{lines}");
    }

    #[test]
    fn interruption_suggests_resume() {
        let lines = end_lines(&outcome(StopReason::Interrupted), None);
        assert!(
            lines[0].starts_with("interrupted and saved: step 7"),
            "{lines:?}"
        );
        let hint = resume_hint(&outcome(StopReason::Interrupted).folder);
        assert_eq!(hint, "resume with: nextword resume 'runs/my run'");
    }

    #[test]
    fn completed_run_explains_how_to_train_further() {
        let info = RunInfo {
            name: "x".to_string(),
            folder: "runs/x".into(),
            device: "flex".to_string(),
            parameters: 1_234,
            vocab_size: 5,
            train_tokens: 100,
            validation_tokens: 10,
            steps: 20,
            tokens_per_step: 8,
            resumed_at: 20,
            prompt_template: None,
            skipped: vec!["checkpoints/step-00000030: damaged".to_string()],
        };
        let lines = start_lines(&info).join("\n");
        assert!(
            lines.contains("warning: skipped a checkpoint: checkpoints/step-00000030"),
            "{lines}"
        );
        assert!(lines.contains("x: 1,234 parameters on flex"), "{lines}");
        assert!(lines.contains("--set train.steps=N"), "{lines}");
    }
}
