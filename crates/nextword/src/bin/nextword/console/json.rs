//! Progress as JSON.

use std::path::Path;
use std::time::Instant;

use nextword_train::{
    OtherTextLoss, Outcome, PreferenceMetrics, Progress, Reporter, RunInfo, StepReport, StopReason,
    ValidationReport,
};
use serde_json::{Value, json};

use super::progress::Pacing;
use super::warn_skipped;
use crate::output;

/// Prints one JSON object per line to standard output; warnings also go to standard error.
#[derive(Debug, Default)]
pub(super) struct JsonReporter {
    pacing: Pacing,
}

impl JsonReporter {
    /// Ignores write errors: a closed standard output does not stop a run.
    #[allow(clippy::needless_pass_by_value)] // `json!` returns values.
    fn write(value: Value) {
        let _ = output::print_json(&value);
    }
}

/// Adds the metrics of a run on preferences to an event.
fn with_preferences(metrics: &PreferenceMetrics, mut event: Value) -> Value {
    if let (Value::Object(fields), Ok(Value::Object(metrics))) =
        (&mut event, serde_json::to_value(metrics))
    {
        fields.extend(metrics);
    }
    event
}

impl Reporter for JsonReporter {
    fn started(&mut self, info: &RunInfo) {
        warn_skipped(info);
        Self::write(json!({
            "event": "started", "name": info.name, "folder": info.folder, "device": info.device,
            "parameters": info.parameters, "vocab_size": info.vocab_size,
            "train_tokens": info.train_tokens, "trained_tokens": info.trained_tokens, "validation_tokens": info.validation_tokens,
            "steps": info.steps, "tokens_per_step": info.tokens_per_step,
            "resumed_at": info.resumed_at, "skipped": info.skipped,
        }));
    }

    fn preparing(&mut self, message: &str) {
        Self::write(json!({"event": "preparing", "message": message}));
    }

    fn progressed(&mut self, progress: &Progress<'_>) {
        if self.pacing.is_due(progress, Instant::now()) {
            let Progress { what, done, total } = progress;
            Self::write(json!({"event": "progress", "what": what, "done": done, "total": total}));
        }
    }

    fn stepped(&mut self, report: &StepReport, logged: bool) {
        if logged {
            Self::write(with_preferences(
                &report.preferences,
                json!({
                    "event": "step", "step": report.step, "steps": report.steps, "loss": report.loss,
                    "lr": report.learning_rate, "grad_norm": report.grad_norm,
                    "tokens_per_second": report.tokens_per_second, "eta": report.eta,
                }),
            ));
        }
    }

    fn validated(&mut self, report: &ValidationReport) {
        Self::write(with_preferences(
            &report.preferences,
            json!({
                "event": "validation", "step": report.step, "val_loss": report.loss,
                "best": report.best, "tokens": report.tokens, "seconds": report.seconds,
                "ended": report.completions.and_then(|completions| completions.ended_share()),
                "exact": report.completions.and_then(|completions| completions.exact_share()),
            }),
        ));
    }

    fn measured_other_text(&mut self, step: u64, losses: &[OtherTextLoss]) {
        Self::write(json!({"event": "other_text", "step": step, "losses": losses}));
    }

    fn completed(&mut self, step: u64, prompt: &str, text: &str, wanted: &str) {
        Self::write(json!({
            "event": "completion", "step": step, "prompt": prompt, "text": text, "wanted": wanted,
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
            "folder": outcome.folder, "other_text": outcome.other_text,
        }));
    }
}
