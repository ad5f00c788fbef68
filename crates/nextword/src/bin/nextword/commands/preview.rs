//! `nextword preview CONFIG`.

mod pairs;

use std::io::{IsTerminal, stdout};
use std::ops::Range;

use clap::Args;
use nextword_data::{Sample, Samples, Tokenizer};
use nextword_train::{Conversations, PromptCheck, RowReport, RowUse, prepare_conversations};
use serde_json::{Value, json};

use crate::args::ConfigArgs;
use crate::format::{count, grouped, sanitize};
use crate::{exit, output};

/// `preview CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    run: ConfigArgs,
    /// Show the Nth sample for training, counted from 1 [default: the first]
    #[arg(long, value_name = "N", conflicts_with_all = ["longest", "shortest", "all"])]
    sample: Option<usize>,
    /// Show the longest sample
    #[arg(long, conflicts_with_all = ["shortest", "all"])]
    longest: bool,
    /// Show the shortest sample
    #[arg(long, conflicts_with = "all")]
    shortest: bool,
    /// Show all samples
    #[arg(long)]
    all: bool,
    /// Show the id of each token
    #[arg(long)]
    ids: bool,
    /// Print JSON: one line about the data, then one for each sample that is shown
    #[arg(long)]
    json: bool,
}

/// Bold and green, and the end of it.
const COLOR: (&str, &str) = ("\x1b[1;32m", "\x1b[0m");

/// Marks of trained tokens without color.
const BRACKETS: (&str, &str) = ("[[", "]]");

/// Shows samples and what is known about all of them.
pub(crate) fn run(args: &PreviewArgs) -> anyhow::Result<()> {
    let config = args.run.load(None)?;
    if config.data.has_pairs() {
        return pairs::run(args, config);
    }
    let Some(conversations) = prepare_conversations(config)? else {
        return Err(exit::usage(
            "this configuration has neither conversations nor pairs; hint: set data.conversations to a file with them, \
             builtin = \"stories_chat\" under [data], or data.pairs to a file of sources and targets",
        ));
    };
    let mut shown = selected(args, &conversations.train)?;
    if conversations.role(shown.start).is_some() && args.sample.is_none() {
        // Both samples of a pair.
        shown = shown.start & !1..shown.end.next_multiple_of(2);
    }
    let tokenizer = &*conversations.tokenizer;
    if args.json {
        return print_json(&conversations, shown);
    }
    let marks = marks();
    for index in shown {
        let sample = conversations.train.sample(index)?;
        output::print_line(&format!(
            "sample {} of {}{}: {}, {} trained\n",
            index + 1,
            conversations.train.len(),
            pair_part(&conversations, index),
            count(sample.ids.len() as u64, "token"),
            grouped(conversations.train.trained_in(index) as u64)
        ))?;
        output::print_line(&marked_text(&sample, tokenizer, marks))?;
        if args.ids {
            output::print_line(&format!("\n{}", id_lines(&sample, tokenizer, marks)))?;
        }
        if let Some(line) = prompt_line(conversations.check_prompts(index)?) {
            output::print_line(&format!("\n{line}"))?;
        }
        output::print_line("")?;
    }
    let mut lines = summary_lines(&conversations);
    lines.extend(conversations.row_report()?.as_ref().map(row_line));
    lines.iter().try_for_each(|line| output::print_line(line))?;
    if let Some(line) = conversations.report.too_long_line() {
        output::eprint_line(&format!("warning: {line}"));
    }
    Ok(())
}

/// How trained tokens are marked on this output.
fn marks() -> (&'static str, &'static str) {
    let has_color = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if has_color { COLOR } else { BRACKETS }
}

/// What a sample is in a run on preferences.
fn pair_part(conversations: &Conversations, index: usize) -> String {
    let role = conversations.role(index);
    role.map_or_else(String::new, |role| {
        format!(" (pair {}, {role})", index / 2 + 1)
    })
}

/// The samples that the arguments select.
fn selected(args: &PreviewArgs, samples: &Samples) -> anyhow::Result<Range<usize>> {
    let count = samples.len();
    let by_length = |index: &usize| samples.tokens_in(*index);
    let index = match args.sample {
        _ if args.all => return Ok(0..count),
        Some(number) if (1..=count).contains(&number) => number - 1,
        Some(number) => {
            return Err(exit::usage(format!(
                "there is no sample {number}; hint: choose one from 1 to {count}"
            )));
        }
        None if args.longest => (0..count).rev().max_by_key(by_length).unwrap_or(0),
        None if args.shortest => (0..count).min_by_key(by_length).unwrap_or(0),
        None => 0,
    };
    Ok(index..index + 1)
}

/// The parts of a sample, each with whether it is trained.
fn parts(sample: &Sample) -> Vec<(Range<usize>, bool)> {
    let mut parts = Vec::new();
    let mut start = 0;
    for span in &sample.trained {
        parts.push((start..span.start, false));
        parts.push((span.clone(), true));
        start = span.end;
    }
    parts.push((start..sample.ids.len(), false));
    parts.retain(|(range, _)| !range.is_empty());
    parts
}

/// The text of a sample with special tokens, in which trained parts are between `marks`.
fn marked_text(sample: &Sample, tokenizer: &dyn Tokenizer, marks: (&str, &str)) -> String {
    let mut text = String::new();
    for (range, is_trained) in parts(sample) {
        let part = sanitize(&tokenizer.decode_with_special_tokens(&sample.ids[range]));
        if is_trained {
            text.extend([marks.0, &part, marks.1]);
        } else {
            text.push_str(&part);
        }
    }
    text
}

/// The ids of a sample with the texts of their tokens, in which trained ones are between `marks`.
fn id_lines(sample: &Sample, tokenizer: &dyn Tokenizer, marks: (&str, &str)) -> String {
    let mut lines = Vec::new();
    for (range, is_trained) in parts(sample) {
        for id in &sample.ids[range] {
            let token = tokenizer
                .token_text(*id)
                .filter(|text| !text.is_empty())
                .or_else(|| tokenizer.id_to_token(*id))
                .unwrap_or_default();
            let token = sanitize(&format!("{id} {token:?}"));
            lines.push(if is_trained {
                format!("  {}{token}{}", marks.0, marks.1)
            } else {
                format!("  {token}")
            });
        }
    }
    lines.join("\n")
}

/// Says whether the prompts of a sample are those that the server sends.
fn prompt_line(check: Option<PromptCheck>) -> Option<String> {
    let check = check?;
    let what = match check.prompts {
        1 => "the prompt that `serve` sends for this conversation is".to_string(),
        n => format!("the {n} prompts that `serve` sends for this conversation are"),
    };
    Some(if check.equal == check.prompts {
        format!("{what} the same {} ids", grouped(check.ids as u64))
    } else {
        format!(
            "warning: {what} not the ids of this sample: {} differ",
            check.prompts - check.equal
        )
    })
}

/// What is known about all samples.
fn summary_lines(conversations: &Conversations) -> Vec<String> {
    let (report, samples) = (&conversations.report, &conversations.train);
    let mut lines = vec![format!(
        "  data         {} for training, {} for validation",
        count(report.train as u64, "conversation"),
        grouped(report.validation as u64)
    )];
    lines.extend(statistics_lines(samples, "sample"));
    let listed = |counts: &std::collections::BTreeMap<String, usize>| {
        let parts: Vec<_> = counts
            .iter()
            .map(|(name, count)| format!("{name} ({count})"))
            .collect();
        parts.join(", ")
    };
    if report.pairs > 0 {
        lines.push(format!(
            "  pairs        the chosen completion is longer in {} of {}",
            grouped(report.longer_chosen as u64),
            grouped(report.pairs as u64)
        ));
    }
    lines.push(format!("  formats      {}", listed(&report.formats)));
    lines.push(format!("  found by     {}", listed(&report.methods)));
    let template = report.template.as_deref().unwrap_or("none");
    lines.push(format!("  template     {template}"));
    lines.push(format!(
        "  EOS token    {}",
        sanitize(&report.eos_tokens.join(", "))
    ));
    if report.split_samples > 0 {
        lines.push(format!(
            "  borders      in {} a token would reach across the end of a prompt; it is encoded apart, as in use",
            count(report.split_samples as u64, "sample")
        ));
    }
    for line in report.left_out_lines() {
        lines.push(format!("  incomplete   {line}"));
    }
    if report.shared_prompts > 0 {
        lines.push(format!(
            "  in both      {} for validation whose prompt is in the training data too",
            count(report.shared_prompts as u64, "conversation")
        ));
    }
    lines
}

/// The rows of an epoch, and their share of padding with and without packing.
fn row_line(report: &RowReport) -> String {
    let percent = |used: RowUse| format!("{:.1} % padding", 100.0 * used.padding);
    let (used, other, how) = if report.is_packed {
        (report.packed, report.unpacked, "with one sample each")
    } else {
        let how = "with data.packing = \"samples\"";
        (report.unpacked, report.packed, how)
    };
    format!(
        "  rows         {} of up to {}, {}; {how}: {}, {}",
        grouped(used.rows as u64),
        count(report.length as u64, "token"),
        percent(used),
        grouped(other.rows as u64),
        percent(other)
    )
}

/// Returns a statistic of the sample with this index.
type NumberOf = fn(&Samples, usize) -> usize;

/// The numbers of a sample that are summarized, with their names.
const NUMBERS: [(&str, NumberOf); 2] = [
    ("tokens", Samples::tokens_in),
    ("trained", Samples::trained_in),
];

/// The numbers of all samples as lines; `unit` is what a sample is.
fn statistics_lines(samples: &Samples, unit: &str) -> Vec<String> {
    let lines = NUMBERS.iter().map(|(name, of)| {
        let (minimum, median, maximum) = range_of(samples, *of);
        format!("  {name:<12} minimum {minimum}, median {median}, maximum {maximum} per {unit}")
    });
    lines.collect()
}

/// Adds their number, and the numbers of all samples, to a summary.
fn add_statistics(summary: &mut Value, samples: &Samples) {
    summary["samples"] = json!(samples.len());
    for (name, of) in NUMBERS {
        let (minimum, median, maximum) = range_of(samples, of);
        summary[name] = json!({"minimum": minimum, "median": median, "maximum": maximum});
    }
}

/// Minimum, median and maximum of a number over all samples.
fn range_of(samples: &Samples, of: NumberOf) -> (usize, usize, usize) {
    let mut numbers: Vec<usize> = (0..samples.len()).map(|index| of(samples, index)).collect();
    numbers.sort_unstable();
    let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
    (
        at(0),
        at(numbers.len() / 2),
        at(numbers.len().saturating_sub(1)),
    )
}

fn print_json(conversations: &Conversations, shown: Range<usize>) -> anyhow::Result<()> {
    let (samples, tokenizer) = (&conversations.train, &conversations.tokenizer);
    let mut summary = serde_json::to_value(&conversations.report)?;
    add_statistics(&mut summary, samples);
    if let Some(report) = conversations.row_report()? {
        summary["rows"] = row_json(&report);
    }
    output::print_json(&summary)?;
    for index in shown {
        let sample = samples.sample(index)?;
        let spans = sample.trained.iter().map(|span| [span.start, span.end]);
        let same = conversations.check_prompts(index)?;
        output::print_json(&json!({
            "sample": index + 1,
            "role": conversations.role(index),
            "text": tokenizer.decode_with_special_tokens(&sample.ids),
            "ids": sample.ids,
            "trained": spans.collect::<Vec<_>>(),
            "same_as_served": same.map_or(Value::Null, |check| json!(check.equal == check.prompts)),
        }))?;
    }
    Ok(())
}

fn row_json(report: &RowReport) -> Value {
    let used = |used: RowUse| json!({"rows": used.rows, "padding": used.padding});
    json!({
        "packed": report.is_packed,
        "length": report.length,
        "with_packing": used(report.packed),
        "without_packing": used(report.unpacked),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use nextword_data::TokenizerConfig;

    use super::*;

    #[test]
    fn trained_tokens_are_marked() {
        let tokenizer = TokenizerConfig::chars().build("hi, you<EOS>").unwrap();
        let ids = tokenizer.encode("hi, you<EOS>!").ids;
        let sample = Sample {
            trained: vec![4..8],
            ids,
        };
        let text = marked_text(&sample, &*tokenizer, BRACKETS);
        assert!(text.starts_with("hi, [[you<EOS>]]"), "{text}");
        let lines = id_lines(&sample, &*tokenizer, BRACKETS);
        assert_eq!(lines.matches("[[").count(), 4, "{lines}");
        assert!(
            lines.lines().count() == 9 && lines.contains("\"<EOS>\""),
            "{lines}"
        );
    }

    #[test]
    fn the_line_about_rows_says_what_packing_saves() {
        let unpacked = RowUse {
            rows: 1234,
            padding: 0.4126,
        };
        let packed = RowUse {
            rows: 321,
            padding: 0.01,
        };
        let line = |is_packed| {
            row_line(&RowReport {
                is_packed,
                length: 512,
                unpacked,
                packed,
            })
        };
        assert_eq!(
            line(true),
            "  rows         321 of up to 512 tokens, 1.0 % padding; with one sample each: 1,234, 41.3 % padding"
        );
        assert!(line(false).starts_with(
            "  rows         1,234 of up to 512 tokens, 41.3 % padding; with data.packing"
        ));
    }

    #[test]
    fn prompts_that_differ_from_those_of_the_server_are_a_warning() {
        let line = |prompts, equal| {
            let ids = 1234;
            prompt_line(Some(PromptCheck {
                prompts,
                equal,
                ids,
            }))
            .unwrap()
        };
        assert_eq!(
            line(1, 1),
            "the prompt that `serve` sends for this conversation is the same 1,234 ids"
        );
        assert!(line(3, 3).starts_with("the 3 prompts"));
        assert!(line(3, 2).starts_with("warning:") && line(3, 2).ends_with("1 differ"));
        assert_eq!(prompt_line(None), None);
    }
}
