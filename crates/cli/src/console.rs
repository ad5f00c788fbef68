//! What a run tells, for eyes and for machines.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nextword_train::{Outcome, Reporter, RunInfo, StepReport, StopReason, ValidationReport};
use serde_json::{Value, json};

use crate::format::{duration, grouped, harmless, short};
use crate::output;

/// Who hears what happens in a run.
pub(crate) fn reporter(quiet: bool, json: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(JsonLines)
    } else if quiet {
        Box::new(Quiet)
    } else {
        Box::new(Console::new())
    }
}

/// A bar on a terminal, plain lines off it; all on standard error.
struct Console {
    bar: Option<ProgressBar>,
    /// The last validation loss, shown until the next one.
    validation: Option<f64>,
    /// A prompt of the run's samples, for the commands that are told at the end.
    prompt: Option<String>,
    /// How the run puts prompts.
    template: Option<String>,
    interactive: bool,
}

impl Console {
    fn new() -> Self {
        Self {
            bar: None,
            validation: None,
            prompt: None,
            template: None,
            interactive: std::io::stderr().is_terminal(),
        }
    }

    /// A line that stays, above the bar if there is one.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(line)),
            None => output::note(line),
        }
    }
}

impl Reporter for Console {
    fn started(&mut self, info: &RunInfo) {
        self.template.clone_from(&info.prompt_template);
        for line in opening(info) {
            self.say(&line);
        }
        if self.interactive {
            let bar = ProgressBar::with_draw_target(Some(info.steps), ProgressDrawTarget::stderr());
            // A line that is cut at the edge of a narrow terminal is drawn over cleanly.
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
            None if logged => self.say(&step_line(report, self.validation)),
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
        self.say(&format!(
            "step {}  validation loss {:.4}{best}",
            report.step, report.loss
        ));
    }

    fn sampled(&mut self, step: u64, prompt: &str, text: &str) {
        let block = match &self.template {
            // The answer is a text of its own.
            Some(template) => {
                let put = template.replace(nextword_generate::PROMPT, prompt);
                sample_block(step, &put, &format!(" {text}"))
            }
            None => sample_block(step, prompt, text),
        };
        self.say(&block);
        self.prompt.get_or_insert_with(|| prompt.to_string());
    }

    fn saved(&mut self, _step: u64, path: &Path) {
        self.say(&format!("saved {}", path.display()));
    }

    fn warned(&mut self, message: &str) {
        self.say(&format!("warning: {message}"));
    }

    fn ended(&mut self, outcome: &Outcome) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        for line in closing(outcome, self.prompt.as_deref()) {
            self.say(&line);
        }
    }
}

/// Warnings only.
struct Quiet;

impl Reporter for Quiet {
    fn started(&mut self, info: &RunInfo) {
        warn_skipped(info);
    }

    fn warned(&mut self, message: &str) {
        output::note(&format!("warning: {message}"));
    }
}

/// One JSON object a line on standard output; warnings on standard error too.
struct JsonLines;

impl JsonLines {
    /// A reader that has gone away does not stop a run.
    #[allow(clippy::needless_pass_by_value)] // `json!` makes values.
    fn write(value: Value) {
        let _ = output::json(&value);
    }
}

impl Reporter for JsonLines {
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
        output::note(&format!("warning: {message}"));
        Self::write(json!({"event": "warning", "message": message}));
    }

    fn ended(&mut self, outcome: &Outcome) {
        let reason = match outcome.reason {
            StopReason::Finished => "finished",
            StopReason::Patience => "patience",
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
        output::note(&format!("warning: skipped a checkpoint: {skipped}"));
    }
}

/// What is known when a run begins.
fn opening(info: &RunInfo) -> Vec<String> {
    let mut lines: Vec<String> = info
        .skipped
        .iter()
        .map(|skipped| format!("warning: skipped a checkpoint: {skipped}"))
        .collect();
    lines.push(format!(
        "{}: {} parameters on {}, vocabulary {}, {} training and {} validation tokens",
        info.name,
        grouped(info.parameters as u64),
        info.device,
        info.vocab_size,
        grouped(info.train_tokens as u64),
        grouped(info.validation_tokens as u64),
    ));
    let done = match info.resumed_at {
        0 => String::new(),
        step => format!(", going on after step {step}"),
    };
    lines.push(format!(
        "{} steps of {} tokens into {}{done}",
        info.steps,
        grouped(info.tokens_per_step as u64),
        info.folder.display()
    ));
    if info.resumed_at >= info.steps {
        lines.push("all steps were made before; hint: --set train.steps=N adds some".to_string());
    }
    lines
}

/// `step 1200/5000  24%  loss 2.113  val 2.201  lr 3.0e-4  gnorm 0.81  41.2k tok/s  eta 6m12s`.
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

/// A sample with its prompt, indented.
fn sample_block(step: u64, prompt: &str, text: &str) -> String {
    let text = harmless(&format!("{prompt}{text}"));
    let mut block = format!("sample at step {step}:");
    for line in text.trim_end().lines() {
        block.push_str("\n    ");
        block.push_str(line);
    }
    block
}

/// How it went, and what to do next.
fn closing(outcome: &Outcome, prompt: Option<&str>) -> Vec<String> {
    let how = match outcome.reason {
        StopReason::Finished => "done",
        StopReason::Patience => "stopped early: the validation loss no longer falls",
        StopReason::Interrupted => "interrupted, and saved",
    };
    let show = |what: &str, loss: Option<f64>| {
        loss.map_or_else(String::new, |loss| format!(", {what} {loss:.4}"))
    };
    let first = format!(
        "{how}: step {}{}{}{} in {}",
        outcome.step,
        show("loss", outcome.loss),
        show("validation loss", outcome.validation),
        show("best", outcome.best),
        duration(outcome.elapsed),
    );
    let folder = shell_word(&outcome.folder.display().to_string());
    let mut lines = vec![first];
    if outcome.reason != StopReason::Interrupted {
        lines.push("next:".to_string());
        let program = program();
        let prompt = shell_word(prompt.map_or("...", str::trim));
        lines.push(format!("    {program} generate {folder} {prompt}"));
        lines.push(format!("    {program} explain {folder} {prompt}"));
        lines.push(format!("    {program} plot {folder}"));
    }
    lines
}

/// The command that continues the run in `folder`.
pub(crate) fn resume_hint(folder: &Path) -> String {
    let folder = shell_word(&folder.display().to_string());
    format!("resume with: {} resume {folder}", program())
}

/// What to type for this program: the path that it was called by, unless it is on the search path.
fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if cfg!(not(test)) && called.contains(std::path::MAIN_SEPARATOR) {
        shell_word(&called)
    } else {
        "nextword".to_string()
    }
}

/// `text` as one word of a shell's command line.
fn shell_word(text: &str) -> String {
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
    fn a_step_is_one_line_with_everything_in_it() {
        assert_eq!(
            step_line(&report(), Some(2.2009)),
            "step 1200/5000  24%  loss 2.113  val 2.201  lr 3.0e-4  gnorm 0.81  41.2k tok/s  eta 6m12s"
        );
        assert!(!step_line(&report(), None).contains("val"));
    }

    #[test]
    fn a_sample_is_indented_and_cannot_move_the_cursor() {
        let block = sample_block(10, "Once", " upon\x1b[2J\na time\n\n");
        assert_eq!(
            block,
            "sample at step 10:\n    Once upon\u{fffd}[2J\n    a time"
        );
    }

    #[test]
    fn the_end_tells_the_next_commands() {
        let lines = closing(&outcome(StopReason::Finished), Some("One day")).join("\n");
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
    fn an_interruption_tells_how_to_go_on() {
        let lines = closing(&outcome(StopReason::Interrupted), None);
        assert!(
            lines[0].starts_with("interrupted, and saved: step 7"),
            "{lines:?}"
        );
        let hint = resume_hint(&outcome(StopReason::Interrupted).folder);
        assert_eq!(hint, "resume with: nextword resume 'runs/my run'");
    }

    #[test]
    fn a_run_that_has_all_its_steps_says_how_to_go_further() {
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
        let lines = opening(&info).join("\n");
        assert!(
            lines.contains("warning: skipped a checkpoint: checkpoints/step-00000030"),
            "{lines}"
        );
        assert!(lines.contains("x: 1,234 parameters on flex"), "{lines}");
        assert!(lines.contains("--set train.steps=N"), "{lines}");
    }
}
