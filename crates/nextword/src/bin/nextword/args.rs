//! Command-line arguments.

mod convert;
mod explain;
mod sampling;

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::bench::args::BenchArgs;
pub(crate) use convert::{
    ExportArgs, ExportDtype, ExportFormat, ImportArgs, QuantizeArgs, parse_bits,
};
pub(crate) use explain::{ExplainArgs, Format};
pub(crate) use sampling::SamplingArgs;

/// Train, run and explain decoder-only Transformers.
#[derive(Debug, Parser)]
#[command(
    name = "nextword",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 success, 1 failure, 2 invalid usage or configuration, 3 invalid data or model file, \
                  4 training diverged, 5 out of disk space or memory, 130 interrupted."
)]
pub(crate) struct Cli {
    /// Log progress in detail to standard error, e.g. each request of `serve`; the environment variable
    /// `NEXTWORD_LOG` selects more, e.g. `nextword_server=debug`
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    /// The subcommand to run.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model from a configuration file
    Train(TrainArgs),
    /// Resume a run from its newest valid checkpoint
    Resume(ResumeArgs),
    /// Generate text from a prompt
    Generate(GenerateArgs),
    /// Show every value that a model computes for a prompt, and how it is computed
    Explain(ExplainArgs),
    /// Chat with a model in the terminal
    Chat(crate::commands::chat::ChatArgs),
    /// Serve models over an OpenAI-compatible HTTP API, with a web page
    Serve(crate::commands::serve::ServeArgs),
    /// Tokenize text into shard files, for data too large to tokenize again in every run
    Prepare(PrepareArgs),
    /// Measure a model's loss, perplexity and bits per byte on a text
    Eval(EvalArgs),
    /// Quantize a model's weights to 8 or 4 bits (inference only)
    Quantize(QuantizeArgs),
    /// Convert a Hugging Face model into a nextword model folder
    Import(ImportArgs),
    /// Export a model as a Hugging Face folder or a GGUF file
    Export(ExportArgs),
    /// Show a model's origin, configuration and parameters
    Inspect(InspectArgs),
    /// Estimate a run's size, memory and time before you start it
    Plan(PlanArgs),
    /// Plot loss curves of runs
    Plot(PlotArgs),
    /// List the devices available to this build on this machine
    Devices(DevicesArgs),
    /// Measure training and generation speed on this machine
    Bench(BenchArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
}

/// `train CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Configuration file (TOML)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Override one configuration key, e.g. --set train.steps=500 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    /// [default: the configuration's]
    #[arg(long, short)]
    pub(crate) device: Option<String>,
    /// Check the configuration and the data, and print the estimated cost of the run, without writing anything
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print only warnings and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print events to standard output as JSON, one object per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `resume RUN`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct ResumeArgs {
    /// Run folder, e.g. runs/NAME
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) run: PathBuf,
    /// Device to run on [default: the run's]
    #[arg(long, short)]
    pub(crate) device: Option<String>,
    /// Override one key: train.steps, train.log_every, or any key of checkpoint, validation,
    /// samples and probes (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print only warnings and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Print events to standard output as JSON, one object per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `generate MODEL|RUN [PROMPT]`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Independent flags.
pub(crate) struct GenerateArgs {
    /// Model folder, checkpoint, or run folder (the run's best model is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Text to continue [default: standard input unless it is a terminal, else empty]
    #[arg(allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(long, short, default_value_t = 256, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Sampling temperature: 0 is greedy, 1 samples from the model's own distribution
    #[arg(
        long,
        short,
        default_value_t = 0.8,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) temperature: f64,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Penalize tokens that occur in the prompt or the completion; 1 disables
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) repetition_penalty: f64,
    /// Value subtracted from the logits of tokens already generated
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) presence_penalty: f64,
    /// Value subtracted from a token's logit for each time it has been generated
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) frequency_penalty: f64,
    /// Stop generating before this text (repeatable) [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Random seed for reproducible sampling [default: random, printed to standard error]
    #[arg(long, short)]
    pub(crate) seed: Option<u64>,
    /// Number of completions to generate
    #[arg(long, short = 'n', default_value_t = 1, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) samples: usize,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Use a run's last model instead of its best
    #[arg(long)]
    pub(crate) last: bool,
    /// Use the prompt verbatim, without the model's prompt template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Print one JSON object per completion
    #[arg(long)]
    pub(crate) json: bool,
    /// Print only errors to standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// `prepare SOURCE... --out FOLDER`.
#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// .txt or .jsonl files, folders of such files, or - for standard input
    #[arg(required_unless_present = "config", value_hint = ValueHint::AnyPath)]
    pub(crate) sources: Vec<PathBuf>,
    /// Output folder
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Configuration file whose data section to use; the options below override individual keys
    #[arg(long, short, conflicts_with = "sources", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Tokenizer to build [default: char]
    #[arg(long, short, value_enum)]
    pub(crate) tokenizer: Option<TokenizerArg>,
    /// Vocabulary size of a bpe or word tokenizer [default: 4096 for bpe, all words for word]
    #[arg(long, value_name = "N")]
    pub(crate) vocab_size: Option<usize>,
    /// Existing tokenizer.json to use instead of building one [default: none]
    #[arg(long, conflicts_with_all = ["tokenizer", "vocab_size"], value_hint = ValueHint::FilePath)]
    pub(crate) tokenizer_file: Option<PathBuf>,
    /// Text that separates documents within a file; \n, \t and \\ are escapes [default: one document per file]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) separator: Option<String>,
    /// JSON field that contains the text of a .jsonl line [default: text]
    #[arg(long)]
    pub(crate) field: Option<String>,
    /// Fraction of the data held out for validation [default: 0.1]
    #[arg(long, value_name = "FRACTION", allow_hyphen_values = true)]
    pub(crate) validation: Option<f64>,
    /// Hold out complete documents instead of the end of the text
    #[arg(long)]
    pub(crate) split_documents: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print only errors to standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Tokenizers that `prepare` can build.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TokenizerArg {
    /// One token per character
    Char,
    /// One token per byte
    Byte,
    /// One token per whitespace-separated word
    Word,
    /// Byte-pair encoding, trained on the text
    Bpe,
}

/// `eval MODEL|RUN FILE...`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Model folder, checkpoint, or run folder (the run's best model is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Text to evaluate: .txt or .jsonl files, folders of such files, or - for standard input
    #[arg(required_unless_present = "task", value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<PathBuf>,
    /// Task to evaluate instead of a text: a .jsonl file of questions with `context`, `endings`
    /// and `label`, or of texts with `text`
    #[arg(long, value_name = "FILE", conflicts_with = "files", value_hint = ValueHint::FilePath)]
    pub(crate) task: Option<PathBuf>,
    /// Text that separates documents within a file; \n, \t and \\ are escapes [default: one document per file]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) separator: Option<String>,
    /// JSON field that contains the text of a .jsonl line
    #[arg(long, default_value = "text")]
    pub(crate) field: String,
    /// Second model to compare with on the same text, e.g. the original of a quantized model
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) against: Option<PathBuf>,
    /// Evaluate each document separately instead of packing documents into windows
    #[arg(long)]
    pub(crate) documents: bool,
    /// Number of windows per batch
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) batch_size: usize,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Use a run's last model instead of its best
    #[arg(long)]
    pub(crate) last: bool,
    /// Print the results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `inspect MODEL|RUN`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Model folder, checkpoint, or run folder (the run's best model is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Use a run's last model instead of its best
    #[arg(long)]
    pub(crate) last: bool,
    /// List every tensor with its shape
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `plan CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Configuration file (TOML)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Override one configuration key, e.g. --set train.steps=500 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Device to measure on [default: the configuration's]
    #[arg(long, short)]
    pub(crate) device: Option<String>,
    /// Number of training steps to time; 0 skips the measurement
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) steps: u64,
    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `plot RUN...`.
#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Run folders or metrics.jsonl files
    #[arg(required = true, value_name = "RUN", value_hint = ValueHint::AnyPath)]
    pub(crate) runs: Vec<PathBuf>,
    /// SVG file to write [default: loss.svg in the folder of a single run]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<PathBuf>,
    /// Draw in the terminal; write an SVG file only with --out
    #[arg(long, short)]
    pub(crate) terminal: bool,
    /// Plot attention weights of the run's probe sentences over training instead of losses
    #[arg(long, conflicts_with_all = ["terminal", "log", "json"])]
    pub(crate) attention: bool,
    /// Use a logarithmic loss axis
    #[arg(long)]
    pub(crate) log: bool,
    /// Print the points as JSON instead of drawing
    #[arg(long, conflicts_with_all = ["out", "terminal", "log"])]
    pub(crate) json: bool,
}

/// `devices`.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print one JSON object per device
    #[arg(long)]
    pub(crate) json: bool,
}

/// `completions SHELL`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to generate the script for
    pub(crate) shell: Shell,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &[&str]) -> Result<Command, clap::Error> {
        let line = std::iter::once(&"nextword").chain(line);
        Cli::try_parse_from(line).map(|cli| cli.command)
    }

    #[test]
    fn clap_accepts_the_command_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = format!("{} {}", command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{name}");
            }
        }
    }

    #[test]
    fn set_is_repeatable_and_prompts_may_start_with_a_dash() {
        let line = [
            "train",
            "c.toml",
            "--set",
            "train.steps=5",
            "--set",
            "name=x",
        ];
        let Command::Train(args) = parse(&line).unwrap() else {
            unreachable!()
        };
        assert_eq!(args.set, ["train.steps=5", "name=x"]);
        let Command::Generate(args) = parse(&["generate", "r", "- one", "-n", "3"]).unwrap() else {
            unreachable!()
        };
        assert_eq!((args.prompt.as_deref(), args.samples), (Some("- one"), 3));
    }

    #[test]
    fn invalid_command_lines_are_rejected() {
        let lines: [(&[&str], ErrorKind); 4] = [
            (&["plot"], ErrorKind::MissingRequiredArgument),
            (
                &["plot", "r", "--json", "--log"],
                ErrorKind::ArgumentConflict,
            ),
            (
                &["prepare", "--out", "d"],
                ErrorKind::MissingRequiredArgument,
            ),
            (
                &["generate", "r", "--top-k", "many"],
                ErrorKind::ValueValidation,
            ),
        ];
        for (line, kind) in lines {
            assert_eq!(parse(line).unwrap_err().kind(), kind, "{line:?}");
        }
    }
}
