//! `nextword bench COMMAND`.

use crate::bench::args::{BenchArgs, BenchCommand};
use crate::bench::{Report, decode, load, matmul, tokenize, train};
use crate::format::{bytes, count, short, with_unit};
use crate::output;

/// Runs a benchmark and prints its results.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let (reports, common) = match &args.command {
        BenchCommand::Train(args) => (vec![train::run(args)?], &args.common),
        BenchCommand::Decode(args) => (vec![decode::decode(args)?], &args.common),
        BenchCommand::Prefill(args) => (vec![decode::prefill(args)?], &args.common),
        BenchCommand::Matmul(common) => (matmul::run(common)?, common),
        BenchCommand::Tokenize(args) => (vec![tokenize::run(args)?], &args.common),
        BenchCommand::Load(args) => (vec![load::run(args)?], &args.common),
    };
    for report in &reports {
        if common.json {
            output::print_json(report)?;
        } else {
            output::print_line(&report_line(report))?;
        }
    }
    Ok(())
}

/// Formats a result: `train medium on flex: 61.2 ms per step (60.8 ms to 64.0 ms over 5 rounds),
/// 16.7k tokens/s, …`.
fn report_line(report: &Report) -> String {
    let spread = &report.seconds;
    let mut parts = vec![format!(
        "{} {} on {}: {} per {} ({} to {} over {})",
        report.bench,
        report.subject,
        report.device,
        format_seconds(spread.median),
        report.unit,
        format_seconds(spread.min),
        format_seconds(spread.max),
        count(spread.rounds as u64, "round")
    )];
    if let Some(tokens) = report.tokens_per_second {
        parts.push(format!("{} tokens/s", short(tokens)));
    }
    if let Some(flops) = report.flops_per_second {
        parts.push(with_unit(flops, "FLOP/s"));
    }
    if let (Some(share), Some(peak)) = (report.share_of_peak, report.peak) {
        let (unit, resource) = if report.peak_is_bandwidth {
            ("B/s", "memory bandwidth")
        } else {
            ("FLOP/s", "peak")
        };
        let peak = with_unit(peak, unit);
        parts.push(format!("{:.0}% of {resource} ({peak})", 100.0 * share));
    }
    if let Some(cores) = report.cores_busy {
        parts.push(format!("{cores:.1} cores busy"));
    }
    if let Some(memory) = report.peak_memory_bytes {
        parts.push(format!("peak memory {}", bytes(memory)));
    }
    parts.join(", ")
}

/// Formats a time: `61.2 ms`, `4.71 µs`.
fn format_seconds(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", short(value))
}

#[cfg(test)]
mod tests {
    use super::format_seconds;

    #[test]
    fn seconds_are_scaled_to_a_short_unit() {
        assert_eq!(format_seconds(0.0612), "61.2 ms");
        assert_eq!(format_seconds(4.713e-6), "4.71 µs");
        assert_eq!(format_seconds(2.5), "2.50 s");
    }
}
