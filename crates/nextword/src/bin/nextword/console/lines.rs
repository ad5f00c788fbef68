//! Lines that report a run's progress.

use nextword_model::Architecture;
use nextword_train::{
    LoraInfo, OtherTextLoss, Outcome, PreferenceMetrics, RunInfo, StepReport, StopReason,
    ValidationReport,
};

use super::shell::{program, shell_quote};
use crate::format::{
    count, duration, grouped, learned_tokens, sanitize, short, signed, trained_part, trained_share,
};

/// Returns the lines printed at the start of a run.
pub(super) fn start_lines(info: &RunInfo) -> Vec<String> {
    let mut lines: Vec<String> = info
        .skipped
        .iter()
        .map(|skipped| format!("warning: skipped a checkpoint: {skipped}"))
        .collect();
    lines.push(format!(
        "{}: {} on {}, vocabulary {}, {} training{} and {}",
        info.name,
        count(info.parameters as u64, "parameter"),
        info.device,
        grouped(info.vocab_size as u64),
        grouped(info.train_tokens as u64),
        trained_part(info.trained_tokens),
        count(info.validation_tokens as u64, "validation token"),
    ));
    lines.extend(
        info.lora
            .as_ref()
            .map(|lora| lora_line(lora, info.parameters)),
    );
    let resumed = match info.resumed_at {
        0 => String::new(),
        step => format!(", continuing from step {step}"),
    };
    lines.push(format!(
        "{} of {} into {}{resumed}",
        count(info.steps, "step"),
        learned_tokens(info.tokens_per_step, info.trained_tokens.is_some()),
        info.folder.display()
    ));
    if info.resumed_at >= info.steps {
        lines.push(
            "all steps are already done; hint: train further with --set train.steps=N".to_string(),
        );
    }
    lines
}

/// What a run with `[lora]` trains.
fn lora_line(lora: &LoraInfo, parameters: usize) -> String {
    format!(
        "trains {} of {} ({}); base {} stays as it is",
        grouped(lora.trained_parameters as u64),
        count((parameters + lora.trained_parameters) as u64, "parameter"),
        trained_share(lora.trained_parameters, parameters),
        lora.base.display()
    )
}

/// Formats a step in at most `columns`: `step 1200/5000  24%  loss 2.113  val 2.201  lr 3.0e-4  gnorm 0.81
/// 41.2k tok/s  eta 6m12s`. Where there is less room, what matters least is left out.
pub(super) fn step_line(report: &StepReport, validation: Option<f64>, columns: usize) -> String {
    let percent = 100 * report.step / report.steps.max(1);
    // In the order of the line, each with its rank: the lowest one stays longest.
    let fields = [
        (1, Some(format!("step {}/{}", report.step, report.steps))),
        (5, Some(format!("{percent}%"))),
        (0, Some(format!("loss {:.3}", report.loss))),
        (4, validation.map(|loss| format!("val {loss:.3}"))),
        (8, preferences_part(&report.preferences)),
        (6, Some(format!("lr {:.1e}", report.learning_rate))),
        (7, Some(format!("gnorm {:.2}", report.grad_norm))),
        (
            3,
            Some(format!("{} tok/s", short(report.tokens_per_second))),
        ),
        (2, Some(format!("eta {}", duration(report.eta)))),
        (
            8,
            report
                .waited_share
                .map(|share| format!("waited {:.0}%", 100.0 * share)),
        ),
    ];
    let line = |max_rank: usize| {
        let shown = fields.iter().filter(|(rank, _)| *rank <= max_rank);
        let shown: Vec<&str> = shown.filter_map(|(_, text)| text.as_deref()).collect();
        shown.join("  ")
    };
    let fitting = (0..fields.len()).rev().map(line);
    let mut fitting = fitting.filter(|line| line.chars().count() <= columns);
    fitting
        .next()
        .unwrap_or_else(|| line(0).chars().take(columns).collect())
}

/// Formats a sample with its prompt, indented.
pub(super) fn sample_block(step: u64, prompt: &str, text: &str) -> String {
    let text = sanitize(&format!("{prompt}{text}"));
    let mut block = format!("sample at step {step}:");
    for line in text.trim_end().lines() {
        block.push_str("\n    ");
        block.push_str(line);
    }
    block
}

/// Accuracy and margin of a run on preferences; `None` for other runs.
fn preferences_part(metrics: &PreferenceMetrics) -> Option<String> {
    let accuracy = metrics.accuracy.map(|share| format!("acc {share:.2}"));
    let margin = metrics.margin.map(|margin| format!("margin {margin:.3}"));
    let parts: Vec<String> = accuracy.into_iter().chain(margin).collect();
    (!parts.is_empty()).then(|| parts.join("  "))
}

/// Rewards and log probabilities of a validation, as a line; `None` for runs that are not on preferences.
pub(super) fn rewards_line(report: &ValidationReport) -> Option<String> {
    let metrics = &report.preferences;
    let shown = [
        ("rewards chosen", metrics.chosen_reward),
        ("rejected", metrics.rejected_reward),
        ("log probabilities chosen", metrics.chosen_log_prob),
        ("rejected", metrics.rejected_log_prob),
        ("chosen per token", metrics.chosen_change),
        ("divergence", metrics.divergence),
    ];
    let shown = shown
        .iter()
        .filter_map(|(name, value)| Some((name, (*value)?)));
    let mut parts: Vec<String> = preferences_part(metrics).into_iter().collect();
    parts.extend(shown.map(|(name, value)| match *name {
        "chosen per token" => format!("{name} {}", signed(value, 3)),
        _ => format!("{name} {value:.3}"),
    }));
    (!parts.is_empty()).then(|| format!("step {}  {}", report.step, parts.join("  ")))
}

/// The losses of texts that a run does not train on, each with its increase since the start.
pub(super) fn other_text_part(losses: &[OtherTextLoss]) -> String {
    let parts: Vec<String> = losses
        .iter()
        .map(|text| {
            format!(
                "{} {:.3} → {:.3} ({})",
                sanitize(&text.name),
                text.start,
                text.loss,
                signed(text.change(), 3)
            )
        })
        .collect();
    parts.join("  ")
}

/// How held-out conversations are completed, as the end of a line about a validation.
pub(super) fn completions_part(report: &ValidationReport) -> String {
    let Some(completions) = report.completions else {
        return String::new();
    };
    let ended = format!(
        "  ended by itself {}/{}",
        completions.ended, completions.completions
    );
    match completions.short {
        0 => ended,
        short => format!("{ended}  exact {}/{short}", completions.exact),
    }
}

/// Maximum number of characters before a completion that are shown.
const MAX_CONTEXT: usize = 400;

/// Formats the completion of a held-out conversation or pair beside what the data has.
pub(super) fn completion_block(step: u64, prompt: &str, text: &str, wanted: &str) -> String {
    let start = prompt.char_indices().rev().nth(MAX_CONTEXT - 1);
    let shown = match start {
        Some((at, _)) if at > 0 => format!("…{}", &prompt[at..]),
        _ => prompt.to_string(),
    };
    let mut block = format!("held-out data at step {step}:");
    for line in sanitize(shown.trim_end()).lines() {
        block.push_str("\n    ");
        block.push_str(line);
    }
    for (label, text) in [("completion", text), ("in the data", wanted)] {
        let text = sanitize(text.trim());
        let text = text.replace('\n', "\n               ");
        block.extend(["\n  ", &format!("{label:<12} "), &text]);
    }
    block
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ModelUse {
    #[default]
    Generate,
    Chat,
    /// To generate targets of sources.
    Translate,
    Fill,
}

impl ModelUse {
    /// The use of the model of a run.
    pub(super) fn of(info: &RunInfo) -> Self {
        match info {
            RunInfo {
                architecture: Architecture::Encoder,
                ..
            } => Self::Fill,
            RunInfo {
                architecture: Architecture::Prefix | Architecture::EncoderDecoder,
                ..
            } => Self::Translate,
            RunInfo { is_chat: true, .. } => Self::Chat,
            RunInfo { .. } => Self::Generate,
        }
    }
}

/// Returns the lines printed at the end of a run, of which `resumed_at` updates were made before: its result and
/// what to do next with a model for this use.
pub(super) fn end_lines(
    outcome: &Outcome,
    resumed_at: u64,
    prompt: Option<&str>,
    model_use: ModelUse,
) -> Vec<String> {
    let is_unchanged = resumed_at > 0 && resumed_at == outcome.step;
    let result = match outcome.reason {
        StopReason::Finished if is_unchanged => "nothing to train",
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
    if !outcome.other_text.is_empty() {
        let losses = other_text_part(&outcome.other_text);
        lines.push(format!("loss of other text: {losses}"));
    }
    if outcome.reason != StopReason::Interrupted {
        lines.push("next:".to_string());
        let program = program();
        // A prompt of spaces or line breaks is better left out.
        let prompt = prompt
            .map(str::trim_end)
            .filter(|prompt| !prompt.trim().is_empty());
        let prompt = prompt.map_or_else(String::new, |prompt| format!(" {}", shell_quote(prompt)));
        lines.push(match model_use {
            ModelUse::Chat => format!("    {program} chat {folder}"),
            ModelUse::Generate | ModelUse::Translate => {
                format!("    {program} generate {folder}{prompt}")
            }
            ModelUse::Fill => format!("    {program} fill {folder}{prompt}"),
        });
        lines.push(format!("    {program} explain {folder}{prompt}"));
        lines.push(format!("    {program} plot {folder}"));
    }
    lines
}

#[cfg(test)]
mod tests;
