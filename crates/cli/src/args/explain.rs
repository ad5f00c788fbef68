//! The arguments of `nextword explain`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::CutArgs;

/// `explain RECORD|RUN [PROMPT]`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag of its own.
pub(crate) struct ExplainArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath, required_unless_present = "schema")]
    pub(crate) model: Option<PathBuf>,
    /// What the model reads [default: nothing, as in generate]
    #[arg(
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) prompt: String,
    /// How the numbers are written [default: as --out's ending says, else text]
    #[arg(long, short, value_enum)]
    format: Option<Format>,
    /// The file to write [default: standard output; explain.html in the current folder for html]
    #[arg(long, short, value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<PathBuf>,
    /// Asks where one number comes from, as in --why 'logits[position=3,token=1]' (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) why: Vec<String>,
    /// Changes one thing and tells what would come next: head=LAYER.HEAD switches a head off,
    /// token=POSITION:TEXT puts another token, embedding=TOKEN.DIM:VALUE edits a number (repeatable)
    #[arg(long, value_name = "EDIT")]
    pub(crate) what_if: Vec<String>,
    /// Shows a second prompt beside the first (html)
    #[arg(long, value_name = "PROMPT", allow_hyphen_values = true)]
    pub(crate) compare: Option<String>,
    /// Shows another record's numbers for the same prompt beside these (html)
    #[arg(long, value_name = "RECORD", conflicts_with = "compare", value_hint = ValueHint::DirPath)]
    pub(crate) compare_with: Option<PathBuf>,
    /// Adds a slider over the run's training for its probe sentences, the first of which is the
    /// prompt where none is given (html)
    #[arg(long)]
    pub(crate) over_training: bool,
    /// Leaves the numbers of the steps out: next words, draws and who spoke for them (text)
    #[arg(long)]
    pub(crate) brief: bool,
    /// The layers to show, from 0 as in the tensors' names; titles count from 1 (repeatable) [default: all, or the first if that is too long]
    #[arg(long, value_name = "N")]
    pub(crate) layer: Vec<usize>,
    /// The heads to show, from 0; titles count from 1 (repeatable, text) [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) head: Vec<usize>,
    /// The positions to show, from 0 (repeatable, text) [default: all, or the prompt's last if that
    /// is too long]
    #[arg(long, value_name = "N")]
    pub(crate) position: Vec<usize>,
    /// The most tokens of the answer, each explained in turn
    #[arg(long, short, default_value_t = 4, value_name = "N")]
    pub(crate) max_tokens: usize,
    /// Divides the logits: 0 is greedy, 1 follows the model's own probabilities
    #[arg(
        long,
        short,
        default_value_t = 0.0,
        value_name = "X",
        allow_hyphen_values = true
    )]
    pub(crate) temperature: f64,
    #[command(flatten)]
    pub(crate) cuts: CutArgs,
    /// The same seed gives the same draws
    #[arg(long, short, default_value_t = 0)]
    pub(crate) seed: u64,
    /// How many of the likeliest next tokens are listed
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) top: usize,
    /// Decimals of a number (text)
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) decimals: usize,
    /// Columns of the text [default: $COLUMNS, else 80]
    #[arg(long, value_name = "N")]
    pub(crate) width: Option<usize>,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    pub(crate) last: bool,
    /// Takes the prompt as it is, without the record's prompt template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Writes the JSON schema of --format json instead
    #[arg(long)]
    pub(crate) schema: bool,
}

impl ExplainArgs {
    /// How the numbers are written.
    pub(crate) fn format(&self) -> Format {
        let ending = || self.out.as_ref()?.extension()?.to_str();
        self.format.unwrap_or_else(|| match ending() {
            Some("html" | "htm") => Format::Html,
            Some("json") => Format::Json,
            Some("safetensors") => Format::Safetensors,
            _ => Format::Text,
        })
    }
}

/// How the numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For a terminal
    Text,
    /// For programs: see --schema
    Json,
    /// One page to open in a browser, with no connection needed
    Html,
    /// Tensors with TransformerLens's names, for Python
    Safetensors,
}
