//! `nextword preview CONFIG` of a configuration with pairs.

use std::ops::Range;

use nextword_data::SampleLayout;
use nextword_train::{Pairs, RunConfig, prepare_pairs};
use serde_json::json;

use super::{
    PreviewArgs, add_statistics, id_lines, marked_text, marks, selected, statistics_lines,
};
use crate::format::{count, grouped, sanitize};
use crate::{exit, output};

/// Shows pairs and what is known about all of them.
pub(super) fn run(args: &PreviewArgs, config: RunConfig) -> anyhow::Result<()> {
    let Some(pairs) = prepare_pairs(config)? else {
        return Err(exit::usage(
            "this configuration has no pairs; hint: set data.pairs",
        ));
    };
    let shown = selected(args, &pairs.train)?;
    if args.json {
        return print_json(&pairs, shown);
    }
    let (tokenizer, marks) = (&*pairs.tokenizer, marks());
    for index in shown {
        let sample = pairs.train.sample(index)?;
        output::print_line(&format!(
            "sample {} of {}: {}, {} trained\n",
            index + 1,
            pairs.train.len(),
            count(sample.ids.len() as u64, "token"),
            grouped(pairs.train.trained_in(index) as u64)
        ))?;
        output::print_line(&marked_text(&sample, tokenizer, marks))?;
        if args.ids {
            output::print_line(&format!("\n{}", id_lines(&sample, tokenizer, marks)))?;
        }
        output::print_line("")?;
    }
    let lines = summary_lines(&pairs);
    lines.iter().try_for_each(|line| output::print_line(line))
}

/// What is known about all pairs.
fn summary_lines(pairs: &Pairs) -> Vec<String> {
    let (report, samples) = (&pairs.report, &pairs.train);
    let mut lines = vec![format!(
        "  data         {} for training, {} for validation, no source in both",
        count(report.train as u64, "pair"),
        grouped(report.validation as u64)
    )];
    lines.extend(statistics_lines(samples, "pair"));
    lines.push(format!("  rows         {}", layout(samples.layout())));
    lines.push(format!(
        "  source       {}",
        sanitize(&report.prompt_template)
    ));
    lines.push(format!("  EOS token    {}", sanitize(&report.eos_token)));
    if let Some(line) = report.too_long_line() {
        lines.push(format!("  incomplete   {line}"));
    }
    lines
}

/// How a pair becomes a row, in words.
fn layout(layout: SampleLayout) -> &'static str {
    match layout {
        SampleLayout::Sequence => {
            "source and target are one sequence, in which each token sees those before it"
        }
        SampleLayout::Prefix => {
            "source and target are one sequence; the tokens of the source see each other in both directions"
        }
        SampleLayout::EncoderDecoder => {
            "the encoder reads the source; the token before the target starts the decoder"
        }
    }
}

fn print_json(pairs: &Pairs, shown: Range<usize>) -> anyhow::Result<()> {
    let (samples, tokenizer) = (&pairs.train, &pairs.tokenizer);
    let mut summary = serde_json::to_value(&pairs.report)?;
    add_statistics(&mut summary, samples);
    output::print_json(&summary)?;
    for index in shown {
        let sample = samples.sample(index)?;
        let spans = sample.trained.iter().map(|span| [span.start, span.end]);
        output::print_json(&json!({
            "sample": index + 1,
            "text": tokenizer.decode_with_special_tokens(&sample.ids),
            "ids": sample.ids,
            "trained": spans.collect::<Vec<_>>(),
        }))?;
    }
    Ok(())
}
