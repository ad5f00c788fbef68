//! `nextword compare A B`, and `nextword compare MODEL --device A --device B`.

mod models;
mod passages;

use std::path::{Path, PathBuf};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_experiments::compare::{
    Comparison, DeviceComparison, ModelScores, SettingDifference, compare, compare_devices,
    differing_settings,
};
use serde_json::json;

use crate::args::MappingArgs;
use crate::format::{bytes, count, grouped, rounded, sanitize, short, signed};
use crate::{console, exit, output};
use models::{ComparedModel, validation_windows};

/// Device without `--device`.
const DEFAULT_DEVICE: &str = "flex";

/// Settings that say where a run is, and not what it is.
const PLACES: [&str; 3] = ["name", "out", "device"];

/// `compare A B`.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Two runs or models, or one with --device A --device B
    #[arg(required = true, num_args = 1..=2, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    models: Vec<PathBuf>,
    /// Run whose validation data is used [default: the first of the two that belongs to a run]
    #[arg(long, value_name = "RUN", value_hint = ValueHint::DirPath)]
    data: Option<PathBuf>,
    /// Use at most N windows of the validation data, spread over it [default: as in training; 0 is all]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new())]
    windows: Option<usize>,
    /// Device to run on; twice to compare two devices [default: flex]
    #[arg(long, short)]
    device: Vec<String>,
    /// Use the last models of runs instead of their best ones
    #[arg(long)]
    last: bool,
    #[command(flatten)]
    mapping: MappingArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Compares two models, or two devices.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    match (args.models.as_slice(), args.device.as_slice()) {
        ([a, b], [] | [_]) => {
            let device = args.device.first().map_or(DEFAULT_DEVICE, String::as_str);
            compare_models(args, [a, b], device)
        }
        ([model], [a, b]) => compare_on_devices(args, model, [a, b]),
        _ => Err(exit::usage(
            "compare takes two models, or one model and two devices; hint: `nextword compare A B`, or `nextword compare \
             MODEL --device flex --device wgpu`",
        )),
    }
}

fn compare_models(args: &CompareArgs, paths: [&Path; 2], device: &str) -> anyhow::Result<()> {
    let a = ComparedModel::open(paths[0], args, device)?;
    let b = ComparedModel::open(paths[1], args, device)?;
    if a.tokenizer.hash() != b.tokenizer.hash() {
        let [a, b] = paths.map(|path| path.display().to_string());
        return Err(exit::usage(format!(
            "`{a}` and `{b}` have different tokenizers, so their losses per token do not compare; hint: compare bits per \
             byte of a text with `nextword eval {a} FILE --against {b}`"
        )));
    }
    let length = a.context_length().min(b.context_length());
    let windows = validation_windows(args.data.as_deref(), [&a, &b], length, args.windows)?;
    let settings = settings_of(&a, &b)?;
    let all = 2 * windows.len();
    let mut progress = |done| show_progress(done, all);
    let result = compare(
        &a.model,
        &b.model,
        &windows,
        a.tokenizer.as_ref(),
        &mut progress,
    );
    output::eprint_progress("");
    let result = result?;
    if args.json {
        return output::print_json(&json!({
            "comparison": result, "settings": settings,
            "parameters": [a.parameters(), b.parameters()], "weights_bytes": [a.weights_bytes, b.weights_bytes],
            "training": [a.training, b.training],
        }));
    }
    let mut lines: Vec<String> = settings.iter().map(setting_line).collect();
    lines.extend(table(&result, [&a, &b]));
    lines.push(verdict(&result));
    for line in lines {
        output::print_line(&sanitize(&line))?;
    }
    let has_colors = console::has_colors();
    for line in passages::lines(&result.passages, has_colors) {
        output::print_line(&line)?;
    }
    Ok(())
}

fn show_progress(done: usize, all: usize) {
    output::eprint_progress(&format!("{done} of {}", count(all as u64, "window")));
}

/// Settings of the runs that differ, or of the models if one of them belongs to no run.
fn settings_of(a: &ComparedModel, b: &ComparedModel) -> anyhow::Result<Vec<SettingDifference>> {
    let mut differing = match (&a.run, &b.run) {
        (Some(a), Some(b)) => {
            differing_settings(&serde_json::to_value(a)?, &serde_json::to_value(b)?)
        }
        _ => {
            let [a, b] = [a, b].map(|side| serde_json::to_value(side.model.config()));
            differing_settings(&a?, &b?)
        }
    };
    differing.retain(|setting| !PLACES.contains(&setting.key.as_str()));
    Ok(differing)
}

fn setting_line(setting: &SettingDifference) -> String {
    let shown = |value: &Option<serde_json::Value>| {
        value
            .as_ref()
            .map_or_else(|| "–".to_string(), ToString::to_string)
    };
    format!(
        "{:<30}  {}  →  {}",
        setting.key,
        shown(&setting.a),
        shown(&setting.b)
    )
}

fn table(result: &Comparison, sides: [&ComparedModel; 2]) -> Vec<String> {
    let scores = [&result.a, &result.b];
    let row = |name: &str, value: &dyn Fn(usize) -> String| {
        format!("{name:<30}  {:>14}  {:>14}", value(0), value(1))
    };
    let score = |name: &str, value: fn(&ModelScores) -> f64| {
        row(name, &|side| format!("{:.4}", value(scores[side])))
    };
    let none = || "–".to_string();
    vec![
        row(&count(result.tokens as u64, "token"), &|side| {
            ["A", "B"][side].to_string()
        }),
        score("loss (nats per token)", |scores| scores.loss),
        score("accuracy", |scores| scores.calibration.accuracy),
        score("confidence", |scores| scores.calibration.confidence),
        score("calibration error", |scores| scores.calibration.error),
        row("parameters", &|side| {
            grouped(sides[side].parameters() as u64)
        }),
        row("weights", &|side| bytes(sides[side].weights_bytes)),
        row("tokens/s here", &|side| {
            short(scores[side].tokens_per_second)
        }),
        row("tokens/s in training", &|side| {
            let speed = sides[side].training.and_then(|run| run.tokens_per_second);
            speed.map_or_else(none, short)
        }),
        row("peak memory in training", &|side| {
            let memory = sides[side].training.and_then(|run| run.peak_memory);
            memory.map_or_else(none, bytes)
        }),
    ]
}

/// Smaller differences have only zeros in four decimal places.
const SMALLEST_SHOWN: f64 = 0.5e-4;

/// Which model is better, and how certain that is.
fn verdict(result: &Comparison) -> String {
    let share = format!(
        "B predicts {:.1} % of the tokens better",
        100.0 * result.b_better
    );
    let Some(difference) = result.difference else {
        let mean = result.b.loss - result.a.loss;
        return format!(
            "B minus A: {} nats; there are too few tokens for an interval; {share}",
            signed(mean, 4)
        );
    };
    let ends = [difference.mean, difference.lower, difference.upper];
    if ends.iter().all(|end| end.abs() < f64::MIN_POSITIVE) {
        return "A and B do not differ: they have the same loss on each block of tokens"
            .to_string();
    }
    if ends.iter().all(|end| end.abs() < SMALLEST_SHOWN) {
        return format!("A and B differ by less than 0.0001 nats per token; {share}");
    }
    let (better, sign) = if difference.mean <= 0.0 {
        ("B", -1.0)
    } else {
        ("A", 1.0)
    };
    let mut ends = [sign * difference.lower, sign * difference.upper];
    ends.sort_by(f64::total_cmp);
    let certainty = if difference.contains(0.0) {
        "; the interval contains 0, so that the tokens do not tell which is better"
    } else {
        ""
    };
    format!(
        "{better} is better by {} nats per token, 95 % interval {} to {}{certainty}; {share}",
        rounded(sign * difference.mean, 4),
        rounded(ends[0], 4),
        rounded(ends[1], 4)
    )
}

fn compare_on_devices(
    args: &CompareArgs,
    path: &Path,
    devices: [&String; 2],
) -> anyhow::Result<()> {
    let a = ComparedModel::open(path, args, devices[0])?;
    let b = ComparedModel::open(path, args, devices[1])?;
    let length = a.context_length();
    let windows = validation_windows(args.data.as_deref(), [&a, &b], length, args.windows)?;
    let all = windows.len();
    let mut progress = |done| show_progress(done, all);
    let result = compare_devices(&a.model, &b.model, &windows, &mut progress);
    output::eprint_progress("");
    let result = result?;
    if args.json {
        return output::print_json(&result);
    }
    for line in device_lines(&result, devices) {
        output::print_line(&line)?;
    }
    Ok(())
}

fn device_lines(result: &DeviceComparison, [a, b]: [&String; 2]) -> Vec<String> {
    vec![
        format!("{}, {a} and {b}", count(result.tokens as u64, "token")),
        format!(
            "loss                      {:.6} and {:.6} nats per token",
            result.loss_a, result.loss_b
        ),
        format!(
            "largest difference of a token's loss  {:.2e} nats",
            result.max_loss_difference
        ),
        format!(
            "largest difference of a logit         {:.2e}; the largest logit is {:.1}",
            result.max_logit_difference, result.max_logit
        ),
        format!(
            "same most likely token    {:.3} % of the tokens",
            100.0 * result.same_prediction
        ),
    ]
}

#[cfg(test)]
mod tests {
    use nextword_experiments::compare::Calibration;
    use nextword_experiments::statistics::Interval;

    use super::*;

    #[test]
    fn the_verdict_names_the_better_model_and_the_interval() {
        let scores = ModelScores {
            loss: 1.5,
            calibration: Calibration::default(),
            tokens_per_second: 1.0,
        };
        let with = |mean, lower, upper| Comparison {
            tokens: 512,
            a: scores,
            b: scores,
            b_better: 0.25,
            difference: Some(Interval { mean, lower, upper }),
            passages: Vec::new(),
        };
        assert_eq!(
            verdict(&with(-0.021, -0.027, -0.015)),
            "B is better by 0.0210 nats per token, 95 % interval 0.0150 to 0.0270; B predicts 25.0 % of the tokens better"
        );
        let unclear = verdict(&with(0.01, -0.01, 0.03));
        assert!(
            unclear.starts_with(
                "A is better by 0.0100 nats per token, 95 % interval -0.0100 to 0.0300;"
            )
        );
        assert!(unclear.contains("contains 0"), "{unclear}");
        for zero in [0.0, -0.0] {
            let same = verdict(&with(zero, zero, zero));
            assert!(same.starts_with("A and B do not differ"), "{same}");
        }
        let tiny = verdict(&with(-1e-9, -2e-9, 3e-9));
        assert!(
            tiny.starts_with("A and B differ by less than 0.0001 nats"),
            "{tiny}"
        );
    }
}
