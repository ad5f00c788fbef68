//! The command line of the commands that make one record, or another program's files, of another.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

/// `quantize RECORD|RUN --out FOLDER`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// The folder to write
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Bits of a weight: 8 or 4, and half a bit for the scales
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = quantized_bits)]
    pub(crate) bits: u8,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    pub(crate) last: bool,
    /// Writes the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn quantized_bits(text: &str) -> Result<u8, String> {
    match text {
        "8" => Ok(8),
        "4" => Ok(4),
        _ => Err("8 or 4".to_string()),
    }
}

/// `import DIR --out RECORD`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A folder with config.json, model.safetensors (or its shards and index) and tokenizer.json
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
    /// The record to write; an earlier one there is replaced
    #[arg(long, short, value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Writes what was imported as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `export RECORD --format hf|gguf --out PATH`.
#[derive(Debug, Args)]
#[allow(clippy::doc_markdown)] // Its words are shown to users as they are.
pub(crate) struct ExportArgs {
    /// A record, a checkpoint, or a run's folder (its best record is used)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) model: PathBuf,
    /// For whom
    #[arg(long, short, value_enum)]
    pub(crate) format: ExportFormat,
    /// The type of the numbers: f32, f16, bf16; for gguf also q8_0, q4_0
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    pub(crate) dtype: ExportType,
    /// The folder (hf) or file (gguf) to write
    #[arg(long, short, value_hint = ValueHint::AnyPath)]
    pub(crate) out: PathBuf,
    /// Uses the last record of a run instead of the best
    #[arg(long)]
    pub(crate) last: bool,
}

/// Formats of other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A folder that transformers loads
    Hf,
    /// A file that llama.cpp loads
    Gguf,
}

/// Types of numbers in an exported model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types)] // GGUF's names, as they are typed.
pub(crate) enum ExportType {
    /// Four bytes
    F32,
    /// Two bytes, 11 significant bits
    F16,
    /// Two bytes, 8 significant bits and the range of f32
    Bf16,
    /// 8 bits in blocks of 32 with a scale
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits in blocks of 32 with a scale
    #[value(name = "q4_0")]
    Q4_0,
}
