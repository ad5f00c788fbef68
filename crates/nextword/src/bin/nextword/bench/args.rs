//! Arguments of `bench`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueHint};

use super::shapes::Size;
use crate::args::parse_bits;

/// `bench COMMAND`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The benchmark to run.
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
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

/// Arguments shared by all benchmarks.
#[derive(Debug, Args)]
pub(crate) struct BenchCommon {
    /// Number of rounds; their median, minimum and maximum are reported
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) rounds: usize,
    /// Device to run on: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Print the results as JSON, one object per measurement
    #[arg(long)]
    pub(crate) json: bool,
}

/// `bench train`.
#[derive(Debug, Args)]
pub(crate) struct BenchTrainArgs {
    /// Model shape and batch size
    #[arg(long, value_enum, default_value_t = Size::Small)]
    pub(crate) size: Size,
    /// Number of steps per round
    #[arg(long, default_value_t = 10, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) steps: u64,
    /// Precision of matrix products: f32 or bf16
    #[arg(long, default_value = "f32", value_name = "P", value_parser = ["f32", "bf16"])]
    pub(crate) precision: String,
    /// Save only block inputs and recompute activations in the backward pass
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Number of warm-up steps before the first round
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) warm_up: u64,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// The model to measure.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model folder, checkpoint or run folder [default: random weights of --size]
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) path: Option<PathBuf>,
    /// Shape of a model with random weights
    #[arg(long, value_enum, default_value_t = Size::Gpt2, conflicts_with = "path")]
    pub(crate) size: Size,
}

/// `bench decode`.
#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Quantize the weights to 8 or 4 bits first
    #[arg(long, value_name = "N", value_parser = parse_bits)]
    pub(crate) bits: Option<u8>,
    /// Number of tokens per round, at most half of the context length
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// `bench prefill`.
#[derive(Debug, Args)]
pub(crate) struct BenchPrefillArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Prompt length in tokens [default: the full context]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// `bench tokenize MODEL [FILE]`.
#[derive(Debug, Args)]
pub(crate) struct BenchTokenizeArgs {
    /// Model folder, checkpoint or run folder with the tokenizer to measure
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Text file to tokenize [default: 1 MiB of built-in stories]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// `bench load MODEL`.
#[derive(Debug, Args)]
pub(crate) struct BenchLoadArgs {
    /// Model folder, checkpoint or run folder
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}
