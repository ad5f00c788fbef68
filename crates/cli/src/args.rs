//! The command line.

mod explain;
mod records;
mod sampling;

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::bench::args::BenchArgs;
pub(crate) use explain::{ExplainArgs, Format};
pub(crate) use records::{
    ExportArgs, ExportFormat, ExportType, ImportArgs, QuantizeArgs, quantized_bits,
};
pub(crate) use sampling::CutArgs;

/// Trains, runs and examines decoder-only Transformers.
#[derive(Debug, Parser)]
#[command(
    name = "nextword",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 failure, 2 wrong usage or configuration, 3 bad data or model file, \
                  4 training diverged, 5 disk or memory short, 130 interrupted."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trains a model as a configuration file says
    Train(TrainArgs),
    /// Continues a run from its newest sound checkpoint
    Resume(ResumeArgs),
    /// Continues a prompt with text from a trained model
    Generate(GenerateArgs),
    /// Shows every number on the way from a prompt to its next words, and where it comes from
    Explain(ExplainArgs),
    /// Talks with a model in the terminal
    Chat(crate::commands::chat::ChatArgs),
    /// Serves models over HTTP, as OpenAI's clients expect it, with a page to try them
    Serve(crate::commands::serve::ServeArgs),
    /// Turns text into token files, for data too large to be read anew by each run
    Prepare(PrepareArgs),
    /// Measures loss, perplexity and bits per byte of a model on a text
    Eval(EvalArgs),
    /// Makes a record of 8 or 4 bits a weight: smaller and faster to run, not to be trained
    Quantize(QuantizeArgs),
    /// Turns a Hugging Face folder into a record
    Import(ImportArgs),
    /// Writes a record for other programs: a Hugging Face folder or a GGUF file
    Export(ExportArgs),
    /// Shows where a model comes from and what it is made of
    Inspect(InspectArgs),
    /// Tells what a run will take before it begins: size, memory, time
    Plan(PlanArgs),
    /// Draws the loss curves of runs
    Plot(PlotArgs),
    /// Lists the devices that this build can use on this machine
    Devices(DevicesArgs),
    /// Measures how fast this machine trains, reads and writes
    Bench(BenchArgs),
    /// Writes a completion script for a shell
    Completions(CompletionsArgs),
}

/// `train CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The configuration, a TOML file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Sets one key of the configuration, as in --set train.steps=500 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    /// [default: the configuration's]
    #[arg(long, short)]
    pub(crate) device: Option<String>,
    /// Only checks the configuration and the data and tells what the run would take; writes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Says nothing but warnings and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Writes what happens to standard output, one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `resume RUN`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Its words are shown to users as they are.
pub(crate) struct ResumeArgs {
    /// The run's folder, as in runs/NAME
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) run: PathBuf,
    /// Device to go on with [default: the run's]
    #[arg(long, short)]
    pub(crate) device: Option<String>,
    /// Sets one key anew: train.steps, train.log_every, or any of checkpoint, validation,
    /// samples and probes (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Says nothing but warnings and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Writes what happens to standard output, one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `generate RECORD|RUN [PROMPT]`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag of its own.
pub(crate) struct GenerateArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// What to continue [default: standard input if it is not a terminal, else nothing]
    #[arg(allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// The most tokens of an answer
    #[arg(long, short, default_value_t = 256, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Divides the logits: 0 is greedy, 1 follows the model's own probabilities
    #[arg(
        long,
        short,
        default_value_t = 0.8,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) temperature: f64,
    #[command(flatten)]
    pub(crate) cuts: CutArgs,
    /// Makes tokens of the prompt and the answer less likely; 1 is off
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) repetition_penalty: f64,
    /// Taken from the logits of tokens that the answer has already
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) presence_penalty: f64,
    /// Taken from a token's logit for each time that the answer has it already
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) frequency_penalty: f64,
    /// Ends the answer before this text (repeatable) [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// The same seed gives the same text [default: a new one each time, told on standard error]
    #[arg(long, short)]
    pub(crate) seed: Option<u64>,
    /// How many answers
    #[arg(long, short = 'n', default_value_t = 1, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub(crate) samples: usize,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    pub(crate) last: bool,
    /// Takes the prompt as it is, without the record's prompt template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Writes one JSON object for each answer
    #[arg(long)]
    pub(crate) json: bool,
    /// Says nothing but errors on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// `prepare SOURCE... --out FOLDER`.
#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// .txt or .jsonl files, folders of them, or - for standard input
    #[arg(required_unless_present = "config", value_hint = ValueHint::AnyPath)]
    pub(crate) sources: Vec<PathBuf>,
    /// The folder to write
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Takes the data section of this configuration; the options below set single keys of it anew
    #[arg(long, short, conflicts_with = "sources", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// How text becomes tokens [default: char]
    #[arg(long, short, value_enum)]
    pub(crate) tokenizer: Option<Kind>,
    /// Tokens of a bpe or word vocabulary [default: 4096 for bpe, all for word]
    #[arg(long, value_name = "N")]
    pub(crate) vocab_size: Option<usize>,
    /// A tokenizer.json to use instead of making one [default: none]
    #[arg(long, conflicts_with_all = ["tokenizer", "vocab_size"], value_hint = ValueHint::FilePath)]
    pub(crate) tokenizer_file: Option<PathBuf>,
    /// Divides text files into documents; \n, \t and \\ are understood [default: one each file]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) separator: Option<String>,
    /// The field of a .jsonl line that holds the text [default: text]
    #[arg(long)]
    pub(crate) field: Option<String>,
    /// The part kept for validation [default: 0.1]
    #[arg(long, value_name = "PART", allow_hyphen_values = true)]
    pub(crate) validation: Option<f64>,
    /// Divides by whole documents instead of cutting off the end of the text
    #[arg(long)]
    pub(crate) split_documents: bool,
    /// Writes the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Says nothing but errors on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Kinds of tokenizers that can be made.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// One token a character
    Char,
    /// One token a byte
    Byte,
    /// One token a word between white space
    Word,
    /// Byte-pair encoding, trained on the text
    Bpe,
}

/// `eval RECORD|RUN FILE`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// The text: .txt or .jsonl files, folders of them, or - for standard input
    #[arg(required_unless_present = "task", value_hint = ValueHint::AnyPath)]
    pub(crate) files: Vec<PathBuf>,
    /// A task instead of a text: a .jsonl file whose lines are questions with `context`, `endings`
    /// and `label`, or texts with `text`
    #[arg(long, value_name = "FILE", conflicts_with = "files", value_hint = ValueHint::FilePath)]
    pub(crate) task: Option<PathBuf>,
    /// Divides text files into documents; \n, \t and \\ are understood [default: one each file]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) separator: Option<String>,
    /// The field of a .jsonl line that holds the text
    #[arg(long, default_value = "text")]
    pub(crate) field: String,
    /// Another record to measure on the same text, such as the one that a quantized one was made from
    #[arg(long, value_name = "RECORD", value_hint = ValueHint::DirPath)]
    pub(crate) against: Option<PathBuf>,
    /// Predicts each document by itself instead of running across their borders
    #[arg(long)]
    pub(crate) documents: bool,
    /// Windows measured at once
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) batch_size: usize,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    pub(crate) last: bool,
    /// Writes the figures as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `inspect RECORD|RUN`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    pub(crate) last: bool,
    /// Lists every tensor with its shape
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Writes everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `plan CONFIG`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The configuration, a TOML file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Sets one key of the configuration, as in --set train.steps=500 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Device to measure on [default: the configuration's]
    #[arg(long, short)]
    pub(crate) device: Option<String>,
    /// Real steps that are made to measure the speed; 0 measures nothing
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) steps: u64,
    /// Writes the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `plot RUN...`.
#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Folders of runs, or metrics.jsonl files
    #[arg(required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) runs: Vec<PathBuf>,
    /// The SVG file to write [default: loss.svg in the folder of a single run]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<PathBuf>,
    /// Draws in the terminal; writes an SVG file only if --out names one
    #[arg(long, short)]
    pub(crate) terminal: bool,
    /// Draws the attention of the run's probe sentences over training instead of losses
    #[arg(long, conflicts_with_all = ["terminal", "log", "json"])]
    pub(crate) attention: bool,
    /// A logarithmic axis for the loss
    #[arg(long)]
    pub(crate) log: bool,
    /// Writes the points as JSON instead of drawing
    #[arg(long, conflicts_with_all = ["out", "terminal", "log"])]
    pub(crate) json: bool,
}

/// `devices`.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Writes one JSON object for each device
    #[arg(long)]
    pub(crate) json: bool,
}

/// `completions SHELL`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
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
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_is_documented() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = format!("{} {}", command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{name}");
            }
        }
    }

    #[test]
    fn overrides_repeat_and_a_prompt_may_begin_with_a_dash() {
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
    fn what_contradicts_itself_is_refused() {
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
