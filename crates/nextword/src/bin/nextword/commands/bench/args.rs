//! Arguments of `bench`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use nextword_benchmark::Size;
use nextword_model::Bits;

use crate::args::{MappingArgs, parse_bits};

/// `bench COMMAND`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The benchmark to run.
    #[command(subcommand)]
    pub(super) command: BenchCommand,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Time training steps of a predefined model on random tokens
    Train(BenchTrainArgs),
    /// Time single-token decoding, relative to memory bandwidth
    Decode(BenchDecodeArgs),
    /// Time prompt processing (prefill)
    Prefill(BenchPrefillArgs),
    /// Time matrix products of typical model shapes
    Matmul(BenchCommon),
    /// Time tokenization on one core
    Tokenize(BenchTokenizeArgs),
    /// Time from program start to the first generated token
    Load(BenchLoadArgs),
}

/// Model shapes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SizeArg {
    /// 4 layers, 4 heads, width 128, context 64, batch 12, vocabulary 65
    Small,
    /// 6 layers, 6 heads, width 384, context 256, batch 4, vocabulary 65
    Medium,
    /// GPT-2 124M: 12 layers, 12 heads, width 768, context 256, batch 2, vocabulary 50257
    Gpt2,
}

impl From<SizeArg> for Size {
    fn from(size: SizeArg) -> Self {
        match size {
            SizeArg::Small => Self::Small,
            SizeArg::Medium => Self::Medium,
            SizeArg::Gpt2 => Self::Gpt2,
        }
    }
}

/// Arguments shared by all benchmarks.
#[derive(Debug, Args)]
pub(super) struct BenchCommon {
    /// Number of rounds; their median, minimum and maximum are reported
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(super) rounds: usize,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(super) device: String,
    /// Print the results as JSON, one object per measurement
    #[arg(long)]
    pub(super) json: bool,
}

/// `bench train`.
#[derive(Debug, Args)]
pub(super) struct BenchTrainArgs {
    /// Model shape and batch size
    #[arg(long, value_enum, default_value_t = SizeArg::Small)]
    pub(super) size: SizeArg,
    /// Number of steps per round
    #[arg(long, default_value_t = 10, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(super) steps: u64,
    /// Precision of matrix products: f32 or bf16
    #[arg(long, default_value = "f32", value_name = "P", value_parser = ["f32", "bf16"])]
    pub(super) precision: String,
    /// Save only block inputs and recompute activations in the backward pass
    #[arg(long)]
    pub(super) recompute: bool,
    /// Number of warm-up steps before the first round
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(super) warm_up: u64,
    #[command(flatten)]
    pub(super) common: BenchCommon,
}

/// The model to measure.
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// Model folder, checkpoint, run folder or GGUF file [default: random weights of --size]
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub(super) path: Option<PathBuf>,
    /// Shape of a model with random weights
    #[arg(long, value_enum, default_value_t = SizeArg::Gpt2, conflicts_with = "path")]
    pub(super) size: SizeArg,
    #[command(flatten)]
    pub(super) mapping: MappingArgs,
}

/// `bench decode`.
#[derive(Debug, Args)]
pub(super) struct BenchDecodeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Quantize the weights to 8 or 4 bits first
    #[arg(long, value_name = "N", value_parser = parse_bits)]
    pub(super) bits: Option<Bits>,
    /// Number of tokens per round, at most half of the context length
    #[arg(long, default_value_t = 64, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) tokens: usize,
    #[command(flatten)]
    pub(super) common: BenchCommon,
}

/// `bench prefill`.
#[derive(Debug, Args)]
pub(super) struct BenchPrefillArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Prompt length in tokens [default: the full context]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(super) tokens: Option<usize>,
    #[command(flatten)]
    pub(super) common: BenchCommon,
}

/// `bench tokenize MODEL [FILE]`.
#[derive(Debug, Args)]
pub(super) struct BenchTokenizeArgs {
    /// Model folder, checkpoint, run folder or GGUF file with the tokenizer to measure
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) model: PathBuf,
    /// Text file to tokenize [default: 1 MiB of built-in stories]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: BenchCommon,
}

/// `bench load MODEL`.
#[derive(Debug, Args)]
pub(super) struct BenchLoadArgs {
    /// Model folder, checkpoint, run folder or GGUF file
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) mapping: MappingArgs,
    #[command(flatten)]
    pub(super) common: BenchCommon,
}
