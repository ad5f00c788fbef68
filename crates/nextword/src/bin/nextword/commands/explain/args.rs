//! Arguments of `explain`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum, ValueHint};

use crate::args::{BaseArgs, MappingArgs, SamplingArgs, parse_seed};
use crate::output_file::ForceArgs;

/// `explain MODEL|RUN [PROMPT]`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Independent flags.
pub(crate) struct ExplainArgs {
    /// Model folder, adapter folder, checkpoint, run folder (the run's best model is used), or GGUF file
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "schema")]
    pub(super) model: Option<PathBuf>,
    /// Prompt to explain; `--` goes before one that begins with a dash [default: standard input unless it is a
    /// terminal, else empty]
    pub(super) prompt: Option<String>,
    /// Output format [default: from the extension of --out, else text, or html with --over-training]
    #[arg(long, short, value_enum)]
    format: Option<Format>,
    /// Output file, or `-` for standard output [default: standard output; explain.html in the current
    /// folder for html]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) force: ForceArgs,
    /// Show how one value is computed, e.g. --why 'logits[position=3,token=1]'; a token's index may also be
    /// its text, and an axis that is left out is 0 (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    pub(super) why: Vec<String>,
    /// Apply an edit and show how the next-token probabilities change: head=LAYER.HEAD disables a head
    /// (of an encoder-decoder model also head=encoder.LAYER.HEAD and head=cross.LAYER.HEAD), token=POSITION:TEXT
    /// replaces a token, embedding=TOKEN.DIM:VALUE sets one element, adapter=X scales what the adapter adds (0: the
    /// base model); no-residual, no-positions and no-mask remove a part of the model (repeatable)
    #[arg(long, value_name = "EDIT")]
    pub(super) what_if: Vec<String>,
    /// Show a second prompt beside the first (html)
    #[arg(long, value_name = "PROMPT", allow_hyphen_values = true)]
    pub(super) compare: Option<String>,
    /// Show another model's values for the same prompt beside these (html)
    #[arg(long, value_name = "MODEL", conflicts_with = "compare", value_hint = ValueHint::AnyPath)]
    pub(super) compare_with: Option<PathBuf>,
    /// Add a slider over training steps for the run's probe sentences; the first one is the
    /// default prompt (html)
    #[arg(long)]
    pub(super) over_training: bool,
    /// Omit step-by-step values; show only predictions, sampling and logit attribution (text)
    #[arg(long)]
    pub(super) brief: bool,
    /// Show the name of each tensor, which --why needs (text)
    #[arg(long)]
    pub(super) names: bool,
    /// Layer to show, counted from 0 as in tensor names; titles count from 1 (repeatable)
    /// [default: all, or the first if the output would be too long]
    #[arg(long, value_name = "N")]
    pub(super) layer: Vec<usize>,
    /// Head to show, counted from 0; titles count from 1 (repeatable, text) [default: all]
    #[arg(long, value_name = "N")]
    pub(super) head: Vec<usize>,
    /// Position to show, counted from 0 (repeatable, text) [default: all, or the prompt's last if
    /// the output would be too long]
    #[arg(long, value_name = "N")]
    pub(super) position: Vec<usize>,
    /// Maximum number of tokens to generate and explain
    #[arg(long, short, default_value_t = 4, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) max_tokens: usize,
    /// Sampling temperature: 0 is greedy, 1 samples from the model's own distribution
    #[arg(
        long,
        short,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(super) temperature: f64,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    /// Random seed for reproducible sampling
    #[arg(long, short, default_value_t = 0, value_parser = parse_seed, allow_hyphen_values = true)]
    pub(super) seed: u64,
    /// Number of most likely next tokens to list
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) top: usize,
    /// Number of decimal places (text)
    #[arg(long, default_value_t = 2, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(0..=9))]
    pub(super) decimals: usize,
    /// Width in columns (text) [default: $COLUMNS, else 80]
    #[arg(long, value_name = "N")]
    pub(super) width: Option<usize>,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(super) device: String,
    #[command(flatten)]
    pub(super) base: BaseArgs,
    #[command(flatten)]
    pub(super) mapping: MappingArgs,
    /// Use a run's last model instead of its best
    #[arg(long)]
    pub(super) last: bool,
    /// Use the prompt verbatim, without the model's prompt template
    #[arg(long)]
    pub(super) raw: bool,
    /// Print the JSON schema of --format json and exit
    #[arg(long)]
    pub(super) schema: bool,
}

impl ExplainArgs {
    /// Returns the output format: `--format`, or that of the output file's extension, or else a page for
    /// `--over-training` and text without it.
    pub(super) fn format(&self) -> Format {
        let format = self.format.or_else(|| self.format_of_extension());
        format.unwrap_or(if self.over_training {
            Format::Html
        } else {
            Format::Text
        })
    }

    /// Whether `--format` or the extension of `--out` says what to write.
    pub(super) fn has_known_format(&self) -> bool {
        self.format.is_some() || self.out.is_none() || self.format_of_extension().is_some()
    }

    /// Whether the output goes to standard output.
    pub(super) fn prints(&self) -> bool {
        self.out.as_ref().is_some_and(|out| out.as_os_str() == "-")
    }

    /// The format of the output file's extension; of standard output and of a device such as `/dev/stdout`, text.
    fn format_of_extension(&self) -> Option<Format> {
        let file = self.out.as_ref()?;
        let Some(extension) = file.extension() else {
            let is_device = file.exists() && !file.is_file();
            return (self.prints() || is_device).then_some(Format::Text);
        };
        match extension.to_str()?.to_ascii_lowercase().as_str() {
            "html" | "htm" => Some(Format::Html),
            "json" => Some(Format::Json),
            "safetensors" => Some(Format::Safetensors),
            "txt" | "text" | "log" | "ansi" | "out" | "md" => Some(Format::Text),
            _ => None,
        }
    }
}

/// Output formats of `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Plain text for a terminal
    Text,
    /// JSON; see --schema
    Json,
    /// Self-contained web page
    Html,
    /// Tensors under their TransformerLens names, for Python
    Safetensors,
}
