//! Arguments of `quantize`, `import` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

/// `quantize MODEL|RUN --out FOLDER`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Model folder, checkpoint, or run folder (the run's best model is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Output folder
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Bits per weight: 8 or 4, plus half a bit for the scales
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = parse_bits)]
    pub(crate) bits: u8,
    /// Use a run's last model instead of its best
    #[arg(long)]
    pub(crate) last: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses a number of bits per weight.
pub(crate) fn parse_bits(text: &str) -> Result<u8, String> {
    match text {
        "8" => Ok(8),
        "4" => Ok(4),
        _ => Err("must be 8 or 4".to_string()),
    }
}

/// `import FOLDER --out MODEL`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Folder with config.json, model.safetensors (or its shards and index) and tokenizer.json
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
    /// Model folder to write; an existing model folder is replaced
    #[arg(long, short, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Print the imported model's details as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `export MODEL|RUN --format hf|gguf --out PATH`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Doc comments are help texts, shown verbatim.
pub(crate) struct ExportArgs {
    /// Model folder, checkpoint, or run folder (the run's best model is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// Target format
    #[arg(long, short, value_enum)]
    pub(crate) format: ExportFormat,
    /// Data type of the weights: f32, f16, bf16; for gguf also q8_0, q4_0
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    pub(crate) dtype: ExportDtype,
    /// Folder (hf) or file (gguf) to write
    #[arg(long, short, value_hint = ValueHint::AnyPath)]
    pub(crate) out: PathBuf,
    /// Use a run's last model instead of its best
    #[arg(long)]
    pub(crate) last: bool,
}

/// Target formats of `export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Folder for Hugging Face transformers
    Hf,
    /// File for llama.cpp
    Gguf,
}

/// Data types of an exported model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types)] // GGUF's own names.
pub(crate) enum ExportDtype {
    /// 32-bit float
    F32,
    /// 16-bit float, 11 significant bits
    F16,
    /// 16-bit float, 8 significant bits and the range of f32
    Bf16,
    /// 8-bit blocks of 32 weights with a scale
    #[value(name = "q8_0")]
    Q8_0,
    /// 4-bit blocks of 32 weights with a scale
    #[value(name = "q4_0")]
    Q4_0,
}
