//! `nextword bench COMMAND`.

mod args;

use std::process::Command;

use nextword_benchmark::{BenchmarkError, Measurement, Runner, Size, TrainWorkload, sample_text};
use nextword_generate::open_tokenizer;
use nextword_model::{BlockFormat, Precision, QuantizedMatrix, Transformer};

use crate::format::{bytes, count, short, with_unit};
use crate::{exit, models, output};

pub(crate) use args::BenchArgs;
use args::{
    BenchCommand, BenchCommon, BenchDecodeArgs, BenchLoadArgs, BenchPrefillArgs, BenchTokenizeArgs,
    BenchTrainArgs, ModelArgs,
};

/// Runs a benchmark and prints its results.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let (measurements, common) = match &args.command {
        BenchCommand::Train(args) => (vec![train(args)?], &args.common),
        BenchCommand::Decode(args) => (vec![decode(args)?], &args.common),
        BenchCommand::Prefill(args) => (vec![prefill(args)?], &args.common),
        BenchCommand::Matmul(common) => (runner(common)?.matmul(), common),
        BenchCommand::Tokenize(args) => (vec![tokenize(args)?], &args.common),
        BenchCommand::Load(args) => (vec![load(args)?], &args.common),
    };
    for measurement in &measurements {
        if common.json {
            output::print_json(measurement)?;
        } else {
            output::print_line(&report_line(measurement))?;
        }
    }
    Ok(())
}

fn runner(common: &BenchCommon) -> anyhow::Result<Runner> {
    Ok(Runner::open(&common.device, common.rounds)?)
}

fn train(args: &BenchTrainArgs) -> anyhow::Result<Measurement> {
    let precision = match args.precision.as_str() {
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    };
    let workload = TrainWorkload {
        size: args.size.into(),
        precision,
        recompute: args.recompute,
        steps: args.steps,
        warm_up: args.warm_up,
    };
    Ok(runner(&args.common)?.train(&workload)?)
}

fn decode(args: &BenchDecodeArgs) -> anyhow::Result<Measurement> {
    let runner = runner(&args.common)?;
    let (mut subject, mut model) = open(&args.model, &runner)?;
    if let Some(bits) = args.bits {
        let has_kernel = QuantizedMatrix::has_kernel(BlockFormat::Q8_0, runner.device());
        if model.bits().is_some() || !has_kernel {
            return Err(exit::usage(
                "--bits requires unquantized weights and flex or a GPU; hint: omit it and pass a model written by \
                 `nextword quantize`",
            ));
        }
        subject = format!("{subject} at {} bits", bits.number());
        model = model.quantize(bits);
    }
    Ok(runner.decode(&subject, &model, args.tokens)?)
}

fn prefill(args: &BenchPrefillArgs) -> anyhow::Result<Measurement> {
    let runner = runner(&args.common)?;
    let (subject, model) = open(&args.model, &runner)?;
    Ok(runner.prefill(&subject, &model, args.tokens)?)
}

fn tokenize(args: &BenchTokenizeArgs) -> anyhow::Result<Measurement> {
    let dir = models::open(&args.model, false)?;
    let tokenizer = open_tokenizer(&dir)?;
    let text = match &args.file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| exit::bad_file(format!("`{}`: {e}", path.display())))?,
        None => sample_text(),
    };
    let subject = args.model.display().to_string();
    let rounds = args.common.rounds;
    Ok(nextword_benchmark::tokenize(
        &subject,
        tokenizer.as_ref(),
        &text,
        rounds,
    ))
}

/// Times this program itself: each round starts it, opens the model and generates one token.
fn load(args: &BenchLoadArgs) -> anyhow::Result<Measurement> {
    let dir = models::open(&args.model, false)?;
    let (device, rounds) = (&args.common.device, args.common.rounds);
    models::open_and_name_device(device)?; // A wrong name is told once, and not by the program that is timed.
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("generate")
        .arg(&dir.path)
        .args(["--max-tokens", "1", "--seed", "1", "--quiet", "--json"])
        .args(["--device", device])
        .args(args.mapping.option());
    let subject = args.model.display().to_string();
    nextword_benchmark::load(&subject, device, rounds, command).map_err(|error| match error {
        BenchmarkError::Failed { .. } => {
            exit::bad_file(format!("cannot measure `{}`: {error}", dir.path.display()))
        }
        other => other.into(),
    })
}

/// Opens the model to measure and returns its name.
fn open(args: &ModelArgs, runner: &Runner) -> anyhow::Result<(String, Transformer)> {
    let device = runner.device();
    Ok(match &args.path {
        Some(path) => {
            let dir = args.mapping.apply(models::open(path, false)?);
            (path.display().to_string(), dir.load(device)?)
        }
        None => {
            let size = Size::from(args.size);
            (size.name().to_string(), size.config().init(device, 1337)?)
        }
    })
}

/// Formats a result: `train medium on flex: 61.2 ms per step (60.8 ms to 64.0 ms over 5 rounds),
/// 16.7k tokens/s, …`.
fn report_line(report: &Measurement) -> String {
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
    if let Some(read) = report.bytes_per_second {
        parts.push(with_unit(read, "B/s"));
    }
    if let Some(launches) = report.launches {
        parts.push(count(launches as u64, "GPU kernel"));
    }
    if let (Some(share), Some(peak)) = (report.share_of_peak, report.peak) {
        parts.push(share_text(share, peak, report.peak_is_bandwidth));
    }
    if let Some(cores) = report.cores_busy {
        parts.push(format!("{cores:.1} cores busy"));
    }
    if let Some(memory) = report.peak_memory_bytes {
        parts.push(format!("peak memory {}", bytes(memory)));
    }
    parts.join(", ")
}

/// Formats the share of the machine's `peak`.
fn share_text(share: f64, peak: f64, is_bandwidth: bool) -> String {
    let (unit, resource) = if is_bandwidth {
        ("B/s", "memory bandwidth")
    } else {
        ("FLOP/s", "peak")
    };
    let peak = with_unit(peak, unit);
    if share > 1.0 && is_bandwidth {
        // A share says nothing about memory that is not read.
        return format!("weights come from the caches, faster than the {resource} ({peak})");
    }
    format!("{:.0}% of {resource} ({peak})", 100.0 * share)
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
    use super::{format_seconds, share_text};

    #[test]
    fn weights_in_the_caches_have_no_share_of_the_bandwidth() {
        let text = share_text(0.934, 20e9, true);
        assert!(text.starts_with("93% of memory bandwidth ("), "{text}");
        for share in [1.2, 1.8, 40.0] {
            let text = share_text(share, 20e9, true);
            assert!(!text.contains('%') && text.contains("caches"), "{text}");
        }
        assert!(share_text(0.5, 1e12, false).starts_with("50% of peak ("));
    }

    #[test]
    fn seconds_are_scaled_to_a_short_unit() {
        assert_eq!(format_seconds(0.0612), "61.2 ms");
        assert_eq!(format_seconds(4.713e-6), "4.71 µs");
        assert_eq!(format_seconds(2.5), "2.50 s");
    }
}
