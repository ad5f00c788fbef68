//! `nextword doctor [CONFIG]`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use nextword_experiments::doctor::{
    CheckOutcome, DataReport, Finding, MachineCheck, check_data, check_device,
};
use nextword_model::{DeviceName, list_devices};
use serde_json::json;

use crate::exit::Code;
use crate::format::{bytes, count, grouped, sanitize};
use crate::{output, run_config};

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Configuration whose data is checked [default: the devices of this machine are checked]
    #[arg(value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Override one configuration key (repeatable)
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Device to check, e.g. wgpu:software (repeatable) [default: all that `nextword devices` lists]
    #[arg(long, short, conflicts_with = "config")]
    device: Vec<String>,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// Checks the data of a configuration, or the devices of this machine. Fails if there are findings.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let is_healthy = match &args.config {
        Some(path) => {
            let config = run_config::load(path, &args.set, None)?;
            let report = check_data(&config)?;
            print_data(&report, args.json)?;
            report.findings.is_empty()
        }
        None => check_machine(args)?,
    };
    Ok(if is_healthy {
        ExitCode::SUCCESS
    } else {
        Code::Failure.into()
    })
}

fn print_data(report: &DataReport, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(report);
    }
    for line in data_lines(report) {
        output::print_line(&sanitize(&line))?;
    }
    Ok(())
}

fn data_lines(report: &DataReport) -> Vec<String> {
    let noun = if report.is_chat {
        "conversation"
    } else {
        "document"
    };
    let documents = count(report.documents, noun);
    let mut lines = vec![match report.bytes {
        0 => documents,
        size => format!("{documents}, {} of text", bytes(size)),
    }];
    if report.train_tokens > 0 {
        lines.push(format!(
            "{} training and {}",
            grouped(report.train_tokens),
            count(report.validation_tokens, "validation token")
        ));
        let tokens = report.train_tokens + report.validation_tokens;
        if report.bytes > 0 {
            let ratio = tokens as f64 / report.bytes as f64;
            lines.push(format!("{ratio:.3} tokens per byte"));
        }
        if report.vocab_size > 0 {
            lines.push(format!(
                "{} of {} occur in the training split",
                grouped(report.used_tokens as u64),
                count(report.vocab_size as u64, "token")
            ));
        }
    }
    let not_checked = report.not_checked.iter();
    lines.extend(not_checked.map(|reason| format!("not checked: {reason}")));
    lines.extend(report.findings.iter().flat_map(finding_lines));
    lines.push(match report.findings.len() {
        0 => "nothing found".to_string(),
        findings => count(findings as u64, "finding"),
    });
    lines
}

fn finding_lines(finding: &Finding) -> Vec<String> {
    let mut lines = vec![format!("! {} {}", grouped(finding.count), finding.problem)];
    if !finding.example.is_empty() {
        lines.push(format!("    example: {}", finding.example));
    }
    lines.push(format!("    fix: {}", finding.fix));
    lines
}

/// Checks devices against the default one, the CPU, and returns whether all passed.
fn check_machine(args: &DoctorArgs) -> anyhow::Result<bool> {
    let reference = nextword::default_device().open()?;
    let names: Vec<String> = if args.device.is_empty() {
        list_devices()
            .iter()
            .map(|info| info.name.to_string())
            .collect()
    } else {
        args.device.clone()
    };
    let mut is_healthy = true;
    for name in names {
        let device = name.parse::<DeviceName>()?.open();
        output::eprint_progress(&format!("checking {name}"));
        let checks = device
            .map_err(anyhow::Error::from)
            .and_then(|device| Ok(check_device(&device, &reference)?));
        output::eprint_progress("");
        let has_passed = |check: &MachineCheck| check.verdict != CheckOutcome::Failed;
        match checks {
            Ok(checks) => {
                is_healthy &= checks.iter().all(has_passed);
                print_checks(&name, &checks, args.json)?;
            }
            Err(error) => {
                is_healthy = false;
                let problem = sanitize(&error.to_string());
                if args.json {
                    output::print_json(&json!({"device": name, "error": problem}))?;
                } else {
                    output::print_line(&format!("{name:<16} FAILED  {problem}"))?;
                }
            }
        }
    }
    Ok(is_healthy)
}

fn print_checks(name: &str, checks: &[MachineCheck], json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(&json!({"device": name, "checks": checks}));
    }
    for check in checks {
        output::print_line(&check_line(name, check))?;
    }
    Ok(())
}

fn check_line(device: &str, check: &MachineCheck) -> String {
    let verdict = match check.verdict {
        CheckOutcome::Passed => "ok",
        CheckOutcome::Failed => "FAILED",
        CheckOutcome::NotMeasured => "–",
    };
    let is_memory = check.limit >= 1.0;
    let (value, limit) = if is_memory {
        (bytes(check.value as u64), bytes(check.limit as u64))
    } else {
        (
            format!("{:.1e}", check.value),
            format!("{:.1e}", check.limit),
        )
    };
    format!(
        "{device:<16} {verdict:<7} {:<32} {value} (limit {limit})",
        check.name
    )
}

#[cfg(test)]
mod tests {
    use nextword_experiments::doctor::FindingKind;

    use super::*;

    #[test]
    fn a_finding_has_a_count_an_example_and_a_fix() {
        let report = DataReport {
            documents: 2,
            findings: vec![Finding {
                kind: FindingKind::Nul,
                count: 1234,
                problem: "NUL characters are in the text".to_string(),
                example: "a".to_string(),
                fix: "remove them".to_string(),
            }],
            ..DataReport::default()
        };
        let lines = data_lines(&report).join("\n");
        assert!(
            lines.contains("! 1,234 NUL characters") || lines.contains("! 1 234 NUL"),
            "{lines}"
        );
        assert!(
            lines.contains("    example: a\n    fix: remove them"),
            "{lines}"
        );
        assert!(lines.ends_with("1 finding"), "{lines}");
    }
}
