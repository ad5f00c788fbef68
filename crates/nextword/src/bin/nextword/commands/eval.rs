//! `nextword eval MODEL|RUN FILE...`, `--task FILE` and `--conversations FILE`.

mod conversations;
mod shared;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueHint};
use nextword_data::{Encoding, Packing, SourceConfig, Sources, SpecialTokens, unknown_note};
use nextword_eval::{
    EvalError, EvalProgress, TextReport, TextSettings, evaluate_task_with, evaluate_text_with,
};
use nextword_generate::TextGenerator;
use nextword_model::ModelDir;
use nextword_parallel::Group;

use crate::args::{BaseArgs, MappingArgs};
use crate::exit::{bad_file, usage};
use crate::format::{count, duration, grouped, sanitize, signed};
use crate::ranks::RankArgs;
use crate::{models, output};

/// `eval MODEL|RUN FILE...`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    model: PathBuf,
    /// Text to evaluate: .txt or .jsonl files, folders of such files, or - for standard input. An imported model
    /// reads each document after its BOS token (else its EOS token), and every token of the text counts; a model
    /// that nextword trained reads it as in training, and the EOS token after each document counts too
    #[arg(required_unless_present_any = ["task", "conversations"], value_hint = ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Task to evaluate instead of a text: a .jsonl file of questions with `context`, `endings`
    /// and `label`, or of texts with `text`
    #[arg(long, value_name = "FILE", conflicts_with = "files", value_hint = ValueHint::FilePath)]
    task: Option<PathBuf>,
    /// Conversations to evaluate instead of a text: a .jsonl or .json file in a format of training data, or a folder of
    /// such files. The loss is that of the assistant's messages, and the model completes some of them (repeatable)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "task", "against"], value_hint = ValueHint::AnyPath)]
    conversations: Vec<PathBuf>,
    /// Chat template of the conversations: chatml, plain or a file [default: the model's]
    #[arg(long, value_name = "TEMPLATE", requires = "conversations", value_hint = ValueHint::FilePath)]
    chat_template: Option<PathBuf>,
    /// Number of conversations that the model completes
    #[arg(
        long,
        value_name = "N",
        default_value_t = 16,
        requires = "conversations"
    )]
    completions: usize,
    /// Text that separates documents within a file; \n, \t and \\ are escapes [default: one document per file]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    separator: Option<String>,
    /// JSON field that contains the text of a .jsonl line
    #[arg(long, default_value = "text")]
    field: String,
    /// Second model to compare with on the same text, e.g. the original of a quantized model
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    against: Option<PathBuf>,
    /// Evaluate each document separately instead of packing documents into windows
    #[arg(long)]
    documents: bool,
    /// Number of windows per batch
    #[arg(long, default_value_t = 16, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch_size: usize,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    device: String,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    mapping: MappingArgs,
    #[command(flatten)]
    ranks: RankArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    last: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

/// Evaluates a model on a text or a task.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<ExitCode> {
    if args.ranks.is_distributed() {
        return shared::run(args);
    }
    run_alone(args)?;
    Ok(ExitCode::SUCCESS)
}

fn run_alone(args: &EvalArgs) -> anyhow::Result<()> {
    if let Some(task) = &args.task {
        let dir = args.base.open(&args.model, args.last)?;
        return run_task(args, &args.mapping.apply(dir), task);
    }
    if !args.conversations.is_empty() {
        return conversations::run(args);
    }
    run_text(args, &Group::alone())
}

/// Evaluates a model on a text, whose windows the ranks of `group` share. Rank 0 prints the results.
fn run_text(args: &EvalArgs, group: &Group) -> anyhow::Result<()> {
    if args.against.is_some() && args.files.iter().any(|file| file == Path::new("-")) {
        return Err(usage(
            "--against reads the text twice, which is not possible with standard input; hint: pass a file",
        ));
    }
    let sources = Sources::open(&SourceConfig {
        paths: args.files.clone(),
        separator: args.separator.as_deref().map(models::unescape),
        field: args.field.clone(),
        ..SourceConfig::default()
    })?;
    let start = Instant::now();
    let (report, evaluated) = evaluate(&args.model, Some(&args.base), args, &sources, group)?;
    let seconds = start.elapsed().as_secs_f64();
    let against = args.against.as_ref();
    let against = against
        .map(|other| evaluate(other, None, args, &sources, group))
        .transpose()?;
    if !group.is_first() {
        return Ok(());
    }
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        if let Some((against, other)) = against {
            value["against"] = serde_json::to_value(&against)?;
            value["same_tokenizer"] = (evaluated.tokenizer == other.tokenizer).into();
        }
        return output::print_json(&value);
    }
    print_report(&report, evaluated.special, seconds)?;
    if !evaluated.prefix.is_empty() {
        output::eprint_line(&sanitize(&format!(
            "note: each document is read after {} and without an EOS token behind it, as in \
             lm-evaluation-harness",
            evaluated.prefix
        )));
    }
    against.map_or(Ok(()), |(against, other)| {
        let same_tokenizer = evaluated.tokenizer == other.tokenizer;
        print_comparison(&report, &against, same_tokenizer)
    })
}

/// What a report is about.
struct Evaluated {
    /// The hash of the tokenizer.
    tokenizer: String,
    /// The text of the tokens before each document.
    prefix: String,
    /// The special tokens of the tokenizer.
    special: SpecialTokens,
}

/// Evaluates one model on the text.
fn evaluate(
    model: &Path,
    base: Option<&BaseArgs>,
    args: &EvalArgs,
    sources: &Sources,
    group: &Group,
) -> anyhow::Result<(TextReport, Evaluated)> {
    let dir = match base {
        Some(base) => base.open(model, args.last)?,
        None => models::open(model, args.last)?,
    };
    let dir = args.mapping.apply(dir);
    let device = shared::open_device(&args.device, group)?;
    let generator = TextGenerator::open(&dir, &device)?;
    let settings = TextSettings {
        batch_size: args.batch_size,
        packing: if args.documents {
            Packing::Documents
        } else {
            Packing::Packed
        },
    };
    let tokenizer = generator.tokenizer();
    let mut progress = ProgressLine::new();
    let (model, special) = (generator.model(), &dir.card.special);
    let chunks = sources.chunks_for(tokenizer.text_cuts());
    let report = if group.size() > 1 {
        shared::evaluate_text(group, model, tokenizer.as_ref(), special, chunks, settings)
    } else {
        let mut on_progress = |step| progress.update(step);
        let tokenizer = tokenizer.as_ref();
        evaluate_text_with(
            model,
            tokenizer,
            special,
            chunks,
            settings,
            &mut on_progress,
        )
        .map_err(anyhow::Error::from)
    };
    output::eprint_progress("");
    let report = report?;
    if !report.loss.nats_per_token.is_finite() {
        return Err(bad_file(format!(
            "`{}` has a loss of {}: the model produced NaN or infinity; its weights are damaged \
             or its training diverged; hint: use an earlier model",
            dir.path.display(),
            report.loss.nats_per_token
        )));
    }
    let text = |id: &u32| tokenizer.token_text(*id).unwrap_or_default();
    let evaluated = Evaluated {
        prefix: report.prefix.iter().map(text).collect(),
        tokenizer: tokenizer.hash(),
        special: tokenizer.special_tokens(),
    };
    Ok((report, evaluated))
}

/// Prints the loss of `other` and how far `report` is from it. Only bits per byte compare models with
/// different tokenizers.
fn print_comparison(
    report: &TextReport,
    other: &TextReport,
    same_tokenizer: bool,
) -> anyhow::Result<()> {
    let difference = |a: f64, b: f64| 100.0 * (a / b - 1.0);
    let (ours, theirs) = (&report.loss, &other.loss);
    let perplexity = if same_tokenizer {
        let percent = difference(ours.perplexity, theirs.perplexity);
        format!("{:.3} ({}%)", theirs.perplexity, signed(percent, 2))
    } else {
        format!("{:.3}", theirs.perplexity)
    };
    output::print_line(&format!(
        "against        {:.4} nats per token, perplexity {perplexity}",
        theirs.nats_per_token
    ))?;
    if let (Some(a), Some(b)) = (ours.bits_per_byte, theirs.bits_per_byte) {
        let percent = difference(a, b);
        output::print_line(&format!(
            "               {b:.4} bits per byte ({}%)",
            signed(percent, 2)
        ))?;
    }
    if !same_tokenizer {
        output::eprint_line(
            "note: the models have different tokenizers, so losses per token and perplexities do not compare; \
             bits per byte do",
        );
    }
    Ok(())
}

/// Evaluates a model on a task.
fn run_task(args: &EvalArgs, dir: &ModelDir, task: &Path) -> anyhow::Result<()> {
    let file = File::open(task)
        .map_err(|e| bad_file(format!("`{}` cannot be read: {e}", task.display())))?;
    if args.against.is_some() {
        return Err(usage(
            "--against compares models on a text, not on a task; hint: evaluate the task with each model",
        ));
    }
    let device = models::open_and_name_device(&args.device)?;
    let generator = TextGenerator::open(dir, &device)?;
    let start = Instant::now();
    let tokenizer = generator.tokenizer();
    let mut progress = ProgressLine::new();
    let report = evaluate_task_with(
        generator.model(),
        tokenizer.as_ref(),
        &dir.card.special,
        BufReader::new(file),
        &mut |step| progress.update(step),
    );
    output::eprint_progress("");
    let report = report.map_err(|error| match error {
        EvalError::Task { .. } => bad_file(format!("`{}`: {error}", task.display())),
        other => other.into(),
    })?;
    if args.json {
        return output::print_json(&report);
    }
    for (name, value) in [
        ("accuracy              ", report.accuracy),
        ("  standard error      ", report.accuracy_stderr),
        ("accuracy by characters", report.accuracy_by_characters),
        ("accuracy by bytes     ", report.accuracy_by_bytes),
        ("bits per byte         ", report.bits_per_byte),
        ("word perplexity       ", report.word_perplexity),
    ] {
        if let Some(value) = value {
            output::print_line(&format!("{name}  {value:.4}"))?;
        }
    }
    output::eprint_line(&format!(
        "[{}, {} in {}]",
        count(report.questions as u64, "question"),
        count(report.texts as u64, "text"),
        duration(start.elapsed().as_secs_f64())
    ));
    if report.unknown > 0 {
        let more = if report.unknown < Encoding::MAX_UNKNOWN {
            ""
        } else {
            " or more"
        };
        let strings = count(report.unknown as u64, "distinct string");
        let what = format!("the task has {strings}{more}");
        let note = unknown_note(&what, &[], tokenizer.special_tokens());
        output::eprint_line(&format!("note: {note}"));
    }
    Ok(())
}

/// Minimum time between two progress updates.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The progress of an evaluation, on standard error if that is a terminal.
pub(crate) struct ProgressLine {
    start: Instant,
    last_update: Option<Instant>,
    /// When the first batch was done: the time that is left depends on the batches only.
    first_batch: Option<(Instant, u64)>,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            last_update: None,
            first_batch: None,
        }
    }

    pub(crate) fn update(&mut self, step: EvalProgress) {
        let now = Instant::now();
        if let EvalProgress::Windows { done, .. } = step {
            self.first_batch.get_or_insert((now, done));
        }
        let is_recent = |last: Instant| now.duration_since(last) < PROGRESS_INTERVAL;
        if self.last_update.is_some_and(is_recent) {
            return;
        }
        self.last_update = Some(now);
        let since_first = self
            .first_batch
            .map(|(first, done)| (now.duration_since(first).as_secs_f64(), done));
        let seconds = now.duration_since(self.start).as_secs_f64();
        output::eprint_progress(&progress_text(step, seconds, since_first));
    }
}

/// The progress after `seconds`. `since_first`: the seconds since the first batch, and its number of windows.
fn progress_text(step: EvalProgress, seconds: f64, since_first: Option<(f64, u64)>) -> String {
    let time = duration(seconds);
    match step {
        EvalProgress::Reading { tokens } => {
            format!("reading the text: {}, {time}", count(tokens, "token"))
        }
        EvalProgress::Windows { done, all } => {
            let left = since_first.filter(|(_, first)| *first < done).map_or_else(
                String::new,
                |(seconds, first)| {
                    let left = seconds * all.saturating_sub(done) as f64 / (done - first) as f64;
                    format!(", {} left", duration(left))
                },
            );
            let percent = 100 * done / all.max(1);
            format!(
                "evaluating: {percent}% of {}, {time}{left}",
                count(all, "window")
            )
        }
        EvalProgress::Items { done } => {
            format!("evaluating: {}, {time}", count(done, "line"))
        }
        _ => String::new(),
    }
}

fn print_report(report: &TextReport, special: SpecialTokens, seconds: f64) -> anyhow::Result<()> {
    let loss = &report.loss;
    output::print_line(&format!(
        "loss           {:.4} nats per token",
        loss.nats_per_token
    ))?;
    output::print_line(&format!("perplexity     {:.3}", loss.perplexity))?;
    if let Some(bits) = loss.bits_per_byte {
        output::print_line(&format!("bits per byte  {bits:.4}"))?;
    }
    output::eprint_line(&format!(
        "[{}, {}, {} in {}]",
        count(loss.tokens, "token"),
        count(report.bytes, "byte"),
        count(report.documents, "document"),
        duration(seconds)
    ));
    if report.unknown > 0 {
        let share = 100.0 * report.unknown as f64 / report.parts.max(1) as f64;
        let what = format!(
            "{} of {} of the text ({share:.1} %) are",
            grouped(report.unknown as u64),
            count(report.parts as u64, "part"),
        );
        output::eprint_line(&format!("note: {}", unknown_note(&what, &[], special)));
    }
    if let (Some(note), Some(_)) = (uncounted_note(report), loss.bits_per_byte) {
        output::eprint_line(&note);
    }
    Ok(())
}

/// Says which part of the text bits per byte are about, if it is not all of it.
fn uncounted_note(report: &TextReport) -> Option<String> {
    (report.uncounted_bytes > 0).then(|| {
        format!(
            "note: bits per byte are those of the {} that the vocabulary has; the other {} are not counted, so that \
             they do not compare with a model whose vocabulary has all of the text",
            count(report.bytes, "byte"),
            grouped(report.uncounted_bytes)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_a_share_and_the_time_left() {
        let windows = |done| EvalProgress::Windows { done, all: 100 };
        assert_eq!(
            progress_text(EvalProgress::Reading { tokens: 1 }, 2.0, None),
            "reading the text: 1 token, 2.0s"
        );
        assert_eq!(
            progress_text(windows(16), 2.0, Some((0.0, 16))),
            "evaluating: 16% of 100 windows, 2.0s"
        );
        let text = progress_text(windows(36), 22.0, Some((20.0, 16)));
        assert!(
            text.starts_with("evaluating: 36% of 100 windows, 22"),
            "{text}"
        );
        assert!(text.ends_with(" left") && text.contains("1m"), "{text}");
        let text = progress_text(EvalProgress::Items { done: 7 }, 9.0, None);
        assert!(text.starts_with("evaluating: 7 lines, 9"), "{text}");
    }
}
