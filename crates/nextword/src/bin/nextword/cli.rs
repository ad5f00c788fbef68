//! The command line: all subcommands.

use clap::{Parser, Subcommand};

use crate::commands;

/// Train, run and explain Transformers.
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
    Train(commands::train::TrainArgs),
    /// Resume a run from its newest valid checkpoint
    Resume(commands::resume::ResumeArgs),
    /// Train every combination of settings with several seeds, and compare the losses
    Sweep(commands::sweep::SweepArgs),
    /// Train one run of a sweep, which another process describes on standard input
    #[command(hide = true)]
    SweepRun,
    /// Show the curves of runs in a browser while they train
    Watch(commands::watch::WatchArgs),
    /// Compare two models or runs token by token, or one model on two devices
    Compare(commands::compare::CompareArgs),
    /// Generate text from a prompt
    Generate(commands::generate::GenerateArgs),
    /// Predict the words in the blanks of a text with an encoder
    Fill(commands::fill::FillArgs),
    /// Turn texts into vectors that say how similar they are
    Embed(commands::embed::EmbedArgs),
    /// Show every value that a model computes for a prompt, and how it is computed
    Explain(commands::explain::ExplainArgs),
    /// Chat with a model in the terminal
    Chat(commands::chat::ChatArgs),
    /// Serve models over an OpenAI-compatible HTTP API, with a web page
    Serve(commands::serve::ServeArgs),
    /// Tokenize text into shard files, for data too large to tokenize again in every run
    Prepare(commands::prepare::PrepareArgs),
    /// Show the conversations or pairs of a configuration as a run trains on them: text, tokens, and which of them are
    /// trained
    Preview(commands::preview::PreviewArgs),
    /// Measure a model's loss, perplexity and bits per byte on a text
    Eval(commands::eval::EvalArgs),
    /// Quantize a model's weights to 8 or 4 bits (inference only)
    Quantize(commands::quantize::QuantizeArgs),
    /// Add an adapter to the weights of its base model, as a model folder of its own
    Merge(commands::merge::MergeArgs),
    /// Convert a Hugging Face model (a folder, or on the Hub) or a GGUF file into a nextword model folder
    Import(commands::import::ImportArgs),
    /// Export a model as a Hugging Face folder or a GGUF file
    Export(commands::export::ExportArgs),
    /// Show a model's origin, configuration and parameters
    Inspect(commands::inspect::InspectArgs),
    /// Check the devices of this machine, or the data of a configuration
    Doctor(commands::doctor::DoctorArgs),
    /// Estimate a run's size, memory and time before you start it
    Plan(commands::plan::PlanArgs),
    /// Plot loss curves of runs
    Plot(commands::plot::PlotArgs),
    /// Write the metrics of a run as CSV or for TensorBoard
    ExportMetrics(commands::export_metrics::ExportMetricsArgs),
    /// List the devices available to this build on this machine
    Devices(commands::devices::DevicesArgs),
    /// Measure training and generation speed on this machine
    Bench(commands::bench::BenchArgs),
    /// Print a shell completion script
    Completions(commands::completions::CompletionsArgs),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{ArgMatches, CommandFactory};

    use super::*;

    fn parse(line: &[&str]) -> Result<ArgMatches, clap::Error> {
        let line = std::iter::once(&"nextword").chain(line);
        Cli::command().try_get_matches_from(line)
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
    fn set_is_repeatable_and_a_prompt_after_two_dashes_may_start_with_one() {
        let line = [
            "train",
            "c.toml",
            "--set",
            "train.steps=5",
            "--set",
            "name=x",
        ];
        let matches = parse(&line).unwrap();
        let (_, train) = matches.subcommand().unwrap();
        let set: Vec<&String> = train.get_many("set").unwrap().collect();
        assert_eq!(set, ["train.steps=5", "name=x"]);
        let matches = parse(&["generate", "r", "-n", "3", "--", "- one"]).unwrap();
        let (_, generate) = matches.subcommand().unwrap();
        assert_eq!(generate.get_one::<String>("prompt").unwrap(), "- one");
        assert_eq!(generate.get_one("samples"), Some(&3_usize));
        let error = parse(&["generate", "r", "- one"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
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
