//! Text to ids.

use std::time::Instant;

use nextword_data::{Stories, load_tokenizer};

use super::args::BenchTokenizeArgs;
use super::{Report, time};
use crate::{exit, records};

/// Text taken where no file is given, in bytes.
const TEXT: usize = 1 << 20;

/// Measures a record's tokenizer on one core.
pub(crate) fn run(args: &BenchTokenizeArgs) -> anyhow::Result<Report> {
    let record = records::open(&args.record, false)?;
    let tokenizer = load_tokenizer(record.tokenizer_path())?;
    let text = match &args.file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| exit::bad_file(format!("`{}`: {e}", path.display())))?,
        None => stories(),
    };
    let mut tokens = tokenizer.encode(&text).ids.len();
    let round = || {
        let begin = Instant::now();
        tokens = tokenizer.encode(&text).ids.len();
        Ok(begin.elapsed().as_secs_f64() / text.len().max(1) as f64 * 1e6)
    };
    let timed = time(args.common.rounds, round)?;
    let megabytes = text.len() as f64 / 1e6;
    let per_second = tokens as f64 / megabytes / timed.seconds.median;
    let subject = args.record.display().to_string();
    Ok(Report {
        tokens_per_second: Some(per_second),
        ..timed.report("tokenize", subject, "one core", "megabyte")
    })
}

fn stories() -> String {
    let mut text = String::with_capacity(TEXT + 4096);
    for story in Stories::new(1, usize::MAX).iter() {
        text.push_str(&story);
        text.push('\n');
        if text.len() >= TEXT {
            break;
        }
    }
    text
}
