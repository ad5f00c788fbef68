//! Benchmark of tokenization.

use std::time::Instant;

use nextword_data::{Stories, load_tokenizer};

use super::args::BenchTokenizeArgs;
use super::{Report, measure_rounds};
use crate::{exit, models};

/// Size of the built-in text that is used without a file, in bytes.
const DEFAULT_TEXT_BYTES: usize = 1 << 20;

/// Times a model's tokenizer on one core.
pub(crate) fn run(args: &BenchTokenizeArgs) -> anyhow::Result<Report> {
    let dir = models::open(&args.model, false)?;
    let tokenizer = load_tokenizer(dir.tokenizer_path())?;
    let text = match &args.file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| exit::bad_file(format!("`{}`: {e}", path.display())))?,
        None => stories(),
    };
    let mut tokens = tokenizer.encode(&text).ids.len();
    let round = || {
        let start = Instant::now();
        tokens = tokenizer.encode(&text).ids.len();
        Ok(start.elapsed().as_secs_f64() / text.len().max(1) as f64 * 1e6)
    };
    let timed = measure_rounds(args.common.rounds, round)?;
    let megabytes = text.len() as f64 / 1e6;
    let per_second = tokens as f64 / megabytes / timed.seconds.median;
    let subject = args.model.display().to_string();
    Ok(Report {
        tokens_per_second: Some(per_second),
        ..timed.report("tokenize", subject, "one core", "megabyte")
    })
}

fn stories() -> String {
    let mut text = String::with_capacity(DEFAULT_TEXT_BYTES + 4096);
    for story in Stories::new(1, usize::MAX).iter() {
        text.push_str(&story);
        text.push('\n');
        if text.len() >= DEFAULT_TEXT_BYTES {
            break;
        }
    }
    text
}
