//! `nextword prepare SOURCE... --out FOLDER`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum, ValueHint};
use nextword_data::{
    DataConfig, DatasetCard, Phase, PreparedDataset, Progress, SplitBy, TokenizerConfig,
    TokenizerKind, load_tokenizer, unknown_note, whole_documents_note,
};
use nextword_train::use_declared_eos;
use serde_json::json;

use crate::format::{bytes, count, duration, grouped, sanitize};
use crate::{models, output, output_file, run_config};

/// `prepare SOURCE... --out FOLDER`.
#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// .txt or .jsonl files, folders of such files, or - for standard input
    #[arg(required_unless_present = "config", value_hint = ValueHint::AnyPath)]
    sources: Vec<PathBuf>,
    /// Output folder; an earlier dataset in it is replaced
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    out: PathBuf,
    /// Configuration file whose data section to use; the options below override individual keys
    #[arg(long, short, conflicts_with = "sources", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Tokenizer to build [default: char]
    #[arg(long, short, value_enum)]
    tokenizer: Option<TokenizerArg>,
    /// Vocabulary size of a bpe or word tokenizer [default: 4096 for bpe, all words for word]
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Mask token of the tokenizer to build, which the training of an encoder needs, such as [MASK] [default: none]
    #[arg(long, value_name = "NAME", conflicts_with = "tokenizer_file")]
    mask: Option<String>,
    /// Existing tokenizer.json to use instead of building one [default: none]
    #[arg(long, conflicts_with_all = ["tokenizer", "vocab_size"], value_hint = ValueHint::FilePath)]
    tokenizer_file: Option<PathBuf>,
    /// Text that separates documents within a file; \n, \t and \\ are escapes [default: one document per file]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    separator: Option<String>,
    /// JSON field that contains the text of a .jsonl line [default: text]
    #[arg(long)]
    field: Option<String>,
    /// Fraction of the data held out for validation [default: 0.1]
    #[arg(long, value_name = "FRACTION", allow_hyphen_values = true)]
    validation: Option<f64>,
    /// Hold out complete documents instead of the end of the text
    #[arg(long)]
    split_documents: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Print only errors to standard error
    #[arg(long, short)]
    quiet: bool,
}

/// Tokenizers that `prepare` can build.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TokenizerArg {
    /// One token per character
    Char,
    /// One token per byte
    Byte,
    /// One token per whitespace-separated word
    Word,
    /// Byte-pair encoding, trained on the text
    Bpe,
}

/// Minimum time between two progress updates.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Tokenizes text into shard files.
pub(crate) fn run(args: &PrepareArgs) -> anyhow::Result<()> {
    let config = config(args)?;
    output_file::check_folder(&args.out)?;
    if !args.quiet
        && let Some(earlier) = DatasetCard::open(&args.out)
    {
        output::eprint_line(&format!(
            "note: this replaces the dataset in {} ({} from {})",
            args.out.display(),
            count(earlier.train_tokens + earlier.validation_tokens, "token"),
            sanitize(&earlier.sources.join(", "))
        ));
    }
    if !args.quiet
        && let Some(file) = &config.tokenizer.file
        && let Ok(tokenizer) = load_tokenizer(file)
        && let Some(note) = whole_documents_note(tokenizer.as_ref())
    {
        output::eprint_line(&format!("note: {note}"));
    }
    let start = Instant::now();
    let mut last_update = start;
    let prepared = nextword_data::prepare(&config, &args.out, |progress| {
        if !args.quiet && last_update.elapsed() >= PROGRESS_INTERVAL {
            last_update = Instant::now();
            output::eprint_progress(&progress_line(&progress, start.elapsed().as_secs_f64()));
        }
    });
    if !args.quiet {
        output::eprint_progress("");
    }
    let requested = requested_vocab(&config.tokenizer);
    print_summary(args, requested, &prepared?, start.elapsed().as_secs_f64())
}

/// The vocabulary size that a tokenizer is built for.
fn requested_vocab(tokenizer: &TokenizerConfig) -> Option<usize> {
    let default = match tokenizer.kind {
        TokenizerKind::Bpe => Some(TokenizerConfig::DEFAULT_BPE_VOCAB),
        _ => None,
    };
    let is_built = tokenizer.file.is_none();
    tokenizer.vocab_size.or(default).filter(|_| is_built)
}

/// Why the vocabulary is smaller than requested.
fn vocabulary_note(requested: Option<usize>, found: usize) -> Option<String> {
    requested
        .filter(|requested| *requested > found)
        .map(|requested| {
            format!(
                "of {} requested: the text has no more pairs or words that occur often enough",
                grouped(requested as u64)
            )
        })
}

fn config(args: &PrepareArgs) -> anyhow::Result<DataConfig> {
    let mut config = match &args.config {
        Some(path) => run_config::load(path, &[], None)?.data,
        None => DataConfig {
            paths: args.sources.clone(),
            ..DataConfig::default()
        },
    };
    let tokenizer = &mut config.tokenizer;
    if let Some(kind) = args.tokenizer {
        tokenizer.kind = match kind {
            TokenizerArg::Char => TokenizerKind::Char,
            TokenizerArg::Byte => TokenizerKind::Byte,
            TokenizerArg::Word => TokenizerKind::Word,
            TokenizerArg::Bpe => TokenizerKind::Bpe,
        };
    }
    if args.vocab_size.is_some() {
        tokenizer.vocab_size = args.vocab_size;
    }
    if let Some(mask) = &args.mask {
        tokenizer.mask.clone_from(mask);
    }
    if args.tokenizer_file.is_some() {
        tokenizer.file.clone_from(&args.tokenizer_file);
    }
    use_declared_eos(tokenizer);
    if let Some(separator) = &args.separator {
        config.separator = Some(models::unescape(separator));
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
        Phase::Vocabulary => "building the vocabulary",
        Phase::Tokens => "writing tokens",
    };
    let percent = progress
        .total_bytes
        .filter(|total| *total > 0)
        .map_or_else(String::new, |total| {
            format!(" ({}%)", (100 * progress.bytes / total).min(100))
        });
    let tokens = match progress.tokens {
        0 => String::new(),
        tokens => format!(", {}", count(tokens, "token")),
    };
    format!(
        "{phase}: {}{percent}{tokens}, {}",
        bytes(progress.bytes),
        duration(seconds)
    )
}

fn print_summary(
    args: &PrepareArgs,
    requested_vocab: Option<usize>,
    prepared: &PreparedDataset,
    seconds: f64,
) -> anyhow::Result<()> {
    let card = &prepared.card;
    if args.json {
        return output::print_json(
            &json!({"folder": prepared.folder, "dataset": card, "seconds": seconds}),
        );
    }
    let folder = prepared.folder.display();
    output::print_line(&format!("wrote {folder} in {}", duration(seconds)))?;
    output::print_line(&format!(
        "  text        {} in {}",
        bytes(card.bytes),
        count(card.documents, "document")
    ))?;
    output::print_line(&format!(
        "  vocabulary  {}",
        count(card.vocab_size as u64, "token")
    ))?;
    if let Some(note) = vocabulary_note(requested_vocab, card.vocab_size) {
        output::print_line(&format!("              {note}"))?;
    }
    output::print_line(&format!(
        "  training    {}",
        count(card.train_tokens, "token")
    ))?;
    output::print_line(&format!(
        "  validation  {}",
        count(card.validation_tokens, "token")
    ))?;
    if !card.unknown.is_empty() {
        let what = format!("{} are", card.unknown_share());
        let special = prepared.tokenizer.special_tokens();
        let note = unknown_note(&what, &card.unknown, special);
        output::print_line(&format!("  unknown     {note}"))?;
    }
    output::print_line(&format!(
        "to train on it, set prepared = \"{folder}\" in [data] and remove path"
    ))
}
