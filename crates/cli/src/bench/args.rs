//! The command line of `bench`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueHint};

use super::shapes::Size;
use crate::args::quantized_bits;

/// `bench WHAT`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) what: Bench,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Training steps of a model of known shape, on random tokens
    Train(BenchTrainArgs),
    /// Single tokens of an answer, against the speed at which memory is read
    Decode(BenchDecodeArgs),
    /// The reading of a prompt
    Prefill(BenchPrefillArgs),
    /// Matrix products of the shapes that models have
    Matmul(BenchCommon),
    /// Text to ids, on one core
    Tokenize(BenchTokenizeArgs),
    /// From the start of the program to a record's first token
    Load(BenchLoadArgs),
}

/// What all measurements share.
#[derive(Debug, Args)]
pub(crate) struct BenchCommon {
    /// Rounds; the median and the spread of them are told
    #[arg(long, default_value_t = 5, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) rounds: usize,
    /// Device: auto, flex, ndarray, wgpu, wgpu:N, wgpu:software, vulkan, metal, cuda, rocm
    #[arg(long, short, default_value = "flex")]
    pub(crate) device: String,
    /// Writes the figures as JSON, one object for each measurement
    #[arg(long)]
    pub(crate) json: bool,
}

/// `bench train`.
#[derive(Debug, Args)]
pub(crate) struct BenchTrainArgs {
    /// The model's shape and its batch
    #[arg(long, value_enum, default_value_t = Size::Small)]
    pub(crate) size: Size,
    /// Steps in a round
    #[arg(long, default_value_t = 10, value_name = "N")]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub(crate) steps: u64,
    /// The arithmetic of matrix products: f32 or bf16
    #[arg(long, default_value = "f32", value_name = "P", value_parser = ["f32", "bf16"])]
    pub(crate) precision: String,
    /// Keeps only what enters each block for the backward pass
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Steps before the first round
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) warm_up: u64,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// Which model is measured.
#[derive(Debug, Args)]
pub(crate) struct ModelChoice {
    /// A record, a checkpoint or a run's folder [default: random weights of --size]
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) record: Option<PathBuf>,
    /// The shape of a model with random weights
    #[arg(long, value_enum, default_value_t = Size::Gpt2, conflicts_with = "record")]
    pub(crate) size: Size,
}

/// `bench decode`.
#[derive(Debug, Args)]
pub(crate) struct BenchDecodeArgs {
    #[command(flatten)]
    pub(crate) model: ModelChoice,
    /// Rounds the weights to so many bits first: 8 or 4
    #[arg(long, value_name = "N", value_parser = quantized_bits)]
    pub(crate) bits: Option<u8>,
    /// Tokens in a round, at most half of the model's context
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) tokens: usize,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// `bench prefill`.
#[derive(Debug, Args)]
pub(crate) struct BenchPrefillArgs {
    #[command(flatten)]
    pub(crate) model: ModelChoice,
    /// Tokens of the prompt [default: as many as the context holds]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// `bench tokenize RECORD`.
#[derive(Debug, Args)]
pub(crate) struct BenchTokenizeArgs {
    /// The record, checkpoint or run whose tokenizer is measured
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) record: PathBuf,
    /// A text [default: a megabyte of built-in stories]
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}

/// `bench load RECORD`.
#[derive(Debug, Args)]
pub(crate) struct BenchLoadArgs {
    /// A record, a checkpoint or a run's folder
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) record: PathBuf,
    #[command(flatten)]
    pub(crate) common: BenchCommon,
}
