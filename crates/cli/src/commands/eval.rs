//! `nextword eval RECORD|RUN FILE`.

use std::time::Instant;

use nextword_data::{Packing, SourceConfig, Sources};
use nextword_eval::{TextReport, TextSettings, evaluate_text};
use nextword_generate::TextGenerator;

use crate::args::EvalArgs;
use crate::exit::bad_file;
use crate::format::{duration, grouped};
use crate::{output, records};

/// Measures a model on a text.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let record = records::open(&args.model, args.last)?;
    let sources = Sources::open(&SourceConfig {
        paths: args.files.clone(),
        separator: args.separator.as_deref().map(records::unescape),
        field: args.field.clone(),
        ..SourceConfig::default()
    })?;
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
    let begin = Instant::now();
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
    if args.json {
        return output::json(&report);
    }
    show(&report, begin.elapsed().as_secs_f64())
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
