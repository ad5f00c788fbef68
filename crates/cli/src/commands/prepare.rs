//! `nextword prepare SOURCE... --out FOLDER`.

use std::time::{Duration, Instant};

use nextword_data::{DataConfig, Phase, Prepared, Progress, SplitBy, TokenizerKind};
use serde_json::json;

use crate::args::{Kind, PrepareArgs};
use crate::commands::train;
use crate::format::{bytes, duration, grouped};
use crate::{output, records};

/// Time between two lines of progress.
const INTERVAL: Duration = Duration::from_millis(200);

/// Writes token files.
pub(crate) fn run(args: &PrepareArgs) -> anyhow::Result<()> {
    let config = config(args)?;
    let begin = Instant::now();
    let mut told = begin;
    let prepared = nextword_data::prepare(&config, &args.out, |progress| {
        if !args.quiet && told.elapsed() >= INTERVAL {
            told = Instant::now();
            output::progress(&progress_line(&progress, begin.elapsed().as_secs_f64()));
        }
    });
    if !args.quiet {
        output::progress("");
    }
    show(args, &prepared?, begin.elapsed().as_secs_f64())
}

fn config(args: &PrepareArgs) -> anyhow::Result<DataConfig> {
    let mut config = match &args.config {
        Some(path) => train::config(path, &[], None)?.data,
        None => DataConfig {
            paths: args.sources.clone(),
            ..DataConfig::default()
        },
    };
    let tokenizer = &mut config.tokenizer;
    if let Some(kind) = args.tokenizer {
        tokenizer.kind = match kind {
            Kind::Char => TokenizerKind::Char,
            Kind::Byte => TokenizerKind::Byte,
            Kind::Word => TokenizerKind::Word,
            Kind::Bpe => TokenizerKind::Bpe,
        };
    }
    if args.vocab_size.is_some() {
        tokenizer.vocab_size = args.vocab_size;
    }
    if args.tokenizer_file.is_some() {
        tokenizer.file.clone_from(&args.tokenizer_file);
    }
    if let Some(separator) = &args.separator {
        config.separator = Some(records::unescape(separator));
    }
    if let Some(field) = &args.field {
        config.field.clone_from(field);
    }
    if let Some(validation) = args.validation {
        config.split.validation = validation;
    }
    if args.split_documents {
        config.split.by = SplitBy::Documents;
    }
    Ok(config)
}

fn progress_line(progress: &Progress, seconds: f64) -> String {
    let phase = match progress.phase {
        Phase::Vocabulary => "reading the vocabulary",
        Phase::Tokens => "writing tokens",
    };
    let share = progress
        .total_bytes
        .filter(|total| *total > 0)
        .map_or_else(String::new, |total| {
            format!(" ({}%)", (100 * progress.bytes / total).min(100))
        });
    let tokens = match progress.tokens {
        0 => String::new(),
        tokens => format!(", {} tokens", grouped(tokens)),
    };
    format!(
        "{phase}: {}{share}{tokens}, {}",
        bytes(progress.bytes),
        duration(seconds)
    )
}

fn show(args: &PrepareArgs, prepared: &Prepared, seconds: f64) -> anyhow::Result<()> {
    let card = &prepared.card;
    if args.json {
        return output::json(
            &json!({"folder": prepared.folder, "dataset": card, "seconds": seconds}),
        );
    }
    let folder = prepared.folder.display();
    output::line(&format!("wrote {folder} in {}", duration(seconds)))?;
    output::line(&format!(
        "  text        {} in {} documents",
        bytes(card.bytes),
        grouped(card.documents)
    ))?;
    output::line(&format!(
        "  vocabulary  {} tokens",
        grouped(card.vocab_size as u64)
    ))?;
    output::line(&format!(
        "  training    {} tokens",
        grouped(card.train_tokens)
    ))?;
    output::line(&format!(
        "  validation  {} tokens",
        grouped(card.validation_tokens)
    ))?;
    if !card.unknown.is_empty() {
        let shown: Vec<String> = card
            .unknown
            .iter()
            .take(10)
            .map(|piece| format!("{piece:?}"))
            .collect();
        let (count, shown) = (card.unknown.len(), shown.join(" "));
        output::line(&format!(
            "  unknown     {count} distinct pieces, as {shown}"
        ))?;
    }
    output::line(&format!(
        "use it with [data] prepared = \"{folder}\" and no path"
    ))
}
