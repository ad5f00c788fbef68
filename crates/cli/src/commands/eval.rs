//! `nextword eval RECORD|RUN FILE`, and `--task FILE`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use nextword_data::{Packing, SourceConfig, Sources};
use nextword_eval::{TextReport, TextSettings, evaluate_task, evaluate_text};
use nextword_generate::TextGenerator;
use nextword_model::Record;

use crate::args::EvalArgs;
use crate::exit::{bad_file, usage};
use crate::format::{duration, grouped};
use crate::{output, records};

/// Measures a model on a text.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    if let Some(task) = &args.task {
        return run_task(args, &records::open(&args.model, args.last)?, task);
    }
    if args.against.is_some() && args.files.iter().any(|file| file == Path::new("-")) {
        return Err(usage(
            "standard input can be read only once, and --against reads the text twice; hint: give \
             a file",
        ));
    }
    let sources = Sources::open(&SourceConfig {
        paths: args.files.clone(),
        separator: args.separator.as_deref().map(records::unescape),
        field: args.field.clone(),
        ..SourceConfig::default()
    })?;
    let begin = Instant::now();
    let report = measure(&args.model, args, &sources)?;
    let seconds = begin.elapsed().as_secs_f64();
    let against = args.against.as_ref();
    let against = against
        .map(|other| measure(other, args, &sources))
        .transpose()?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        if let Some(against) = against {
            value["against"] = serde_json::to_value(&against)?;
        }
        return output::json(&value);
    }
    show(&report, seconds)?;
    against.map_or(Ok(()), |against| compare(&report, &against))
}

fn measure(model: &Path, args: &EvalArgs, sources: &Sources) -> anyhow::Result<TextReport> {
    let record = records::open(model, args.last)?;
    let device = records::device(&args.device)?;
    let generator = TextGenerator::open(&record, &device)?;
    let settings = TextSettings {
        batch_size: args.batch_size,
        packing: if args.documents {
            Packing::Documents
        } else {
            Packing::Packed
        },
    };
    let tokenizer = generator.tokenizer();
    let report = evaluate_text(
        generator.model(),
        tokenizer.as_ref(),
        sources.pieces(),
        settings,
    )?;
    if !report.loss.nats_per_token.is_finite() {
        return Err(bad_file(format!(
            "`{}` gives a loss of {}: the model computes what is no number; hint: its weights are \
             damaged or its training diverged, use an earlier record",
            record.path.display(),
            report.loss.nats_per_token
        )));
    }
    Ok(report)
}

/// Says how far the model is behind (or ahead of) another. By bytes where tokens differ.
fn compare(report: &TextReport, other: &TextReport) -> anyhow::Result<()> {
    let percent = |a: f64, b: f64| 100.0 * (a / b - 1.0);
    let (ours, theirs) = (&report.loss, &other.loss);
    output::line(&format!(
        "against        {:.4} nats a token, perplexity {:.3} ({:+.2}%)",
        theirs.nats_per_token,
        theirs.perplexity,
        percent(ours.perplexity, theirs.perplexity)
    ))?;
    if let (Some(a), Some(b)) = (ours.bits_per_byte, theirs.bits_per_byte) {
        let percent = percent(a, b);
        output::line(&format!(
            "               {b:.4} bits per byte ({percent:+.2}%)"
        ))?;
    }
    Ok(())
}

/// Measures a model on a task.
fn run_task(args: &EvalArgs, record: &Record, task: &Path) -> anyhow::Result<()> {
    let lines = File::open(task)
        .map_err(|e| bad_file(format!("`{}` cannot be read: {e}", task.display())))?;
    let device = records::device(&args.device)?;
    let generator = TextGenerator::open(record, &device)?;
    let begin = Instant::now();
    let tokenizer = generator.tokenizer();
    let report = evaluate_task(
        generator.model(),
        tokenizer.as_ref(),
        record.card.bos_id,
        BufReader::new(lines),
    )?;
    if args.json {
        return output::json(&report);
    }
    for (name, figure) in [
        ("accuracy              ", report.accuracy),
        ("  standard error      ", report.accuracy_stderr),
        ("accuracy by characters", report.accuracy_by_characters),
        ("accuracy by bytes     ", report.accuracy_by_bytes),
        ("bits per byte         ", report.bits_per_byte),
        ("word perplexity       ", report.word_perplexity),
    ] {
        if let Some(figure) = figure {
            output::line(&format!("{name}  {figure:.4}"))?;
        }
    }
    output::note(&format!(
        "[{} questions, {} texts in {}]",
        report.questions,
        report.texts,
        duration(begin.elapsed().as_secs_f64())
    ));
    Ok(())
}

fn show(report: &TextReport, seconds: f64) -> anyhow::Result<()> {
    let loss = &report.loss;
    output::line(&format!(
        "loss           {:.4} nats a token",
        loss.nats_per_token
    ))?;
    output::line(&format!("perplexity     {:.3}", loss.perplexity))?;
    if let Some(bits) = loss.bits_per_byte {
        output::line(&format!("bits per byte  {bits:.4}"))?;
    }
    output::note(&format!(
        "[{} tokens, {} bytes, {} documents in {}]",
        grouped(loss.tokens),
        grouped(report.bytes),
        grouped(report.documents),
        duration(seconds)
    ));
    if report.unknown > 0 {
        output::note(&format!(
            "note: {} distinct pieces of the text are not in the model's vocabulary and were left \
             out or replaced by the unknown token",
            report.unknown
        ));
    }
    Ok(())
}
