//! `nextword bench WHAT`.

use crate::bench::args::{Bench, BenchArgs};
use crate::bench::{Report, decode, load, matmul, tokenize, train};
use crate::format::{bytes, short, unit};
use crate::output;

/// Measures, and tells what was measured.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let (reports, common) = match &args.what {
        Bench::Train(args) => (vec![train::run(args)?], &args.common),
        Bench::Decode(args) => (vec![decode::decode(args)?], &args.common),
        Bench::Prefill(args) => (vec![decode::prefill(args)?], &args.common),
        Bench::Matmul(common) => (matmul::run(common)?, common),
        Bench::Tokenize(args) => (vec![tokenize::run(args)?], &args.common),
        Bench::Load(args) => (vec![load::run(args)?], &args.common),
    };
    for report in &reports {
        if common.json {
            output::json(report)?;
        } else {
            output::line(&line(report))?;
        }
    }
    Ok(())
}

/// `train medium on flex: 61.2 ms a step (60.8 to 64.0 in 5 rounds), 16.7k tokens/s, …`.
fn line(report: &Report) -> String {
    let spread = &report.seconds;
    let mut parts = vec![format!(
        "{} {} on {}: {} a {} ({} to {} in {} rounds)",
        report.bench,
        report.subject,
        report.device,
        time(spread.median),
        report.unit,
        time(spread.min),
        time(spread.max),
        spread.rounds
    )];
    if let Some(tokens) = report.tokens_per_second {
        parts.push(format!("{} tokens/s", short(tokens)));
    }
    if let Some(flops) = report.flops_per_second {
        parts.push(unit(flops, "FLOP/s"));
    }
    if let (Some(share), Some(peak)) = (report.share_of_peak, report.peak) {
        let (name, what) = if report.peak_is_bandwidth {
            ("B/s", "the bandwidth")
        } else {
            ("FLOP/s", "the peak")
        };
        let peak = unit(peak, name);
        parts.push(format!("{:.0}% of {what} of {peak}", 100.0 * share));
    }
    if let Some(cores) = report.cores_busy {
        parts.push(format!("{cores:.1} cores busy"));
    }
    if let Some(memory) = report.peak_memory_bytes {
        parts.push(format!("{} at most", bytes(memory)));
    }
    parts.join(", ")
}

/// `61.2 ms`, `4.71 µs`.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", short(value))
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_have_the_unit_that_keeps_them_short() {
        assert_eq!(time(0.0612), "61.2 ms");
        assert_eq!(time(4.713e-6), "4.71 µs");
        assert_eq!(time(2.5), "2.50 s");
    }
}
