//! Arguments that several commands share.

use clap::Args;
use nextword_generate::SamplingConfig;
use nextword_model::Bits;

/// Filters that restrict sampling to the most likely tokens.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Keep only the K most likely tokens (top-k) [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the smallest set of tokens whose probabilities add up to P (nucleus sampling) [default: all]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    top_p: Option<f64>,
    /// Keep tokens whose probability is at least P times that of the most likely token [default: all]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    min_p: Option<f64>,
}

impl SamplingArgs {
    /// Returns a sampling configuration with these filters, `temperature` and `seed`.
    pub(crate) fn config(&self, temperature: f64, seed: u64) -> SamplingConfig {
        SamplingConfig {
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed,
            ..SamplingConfig::default()
        }
    }
}

/// Parses a number of bits per weight.
pub(crate) fn parse_bits(text: &str) -> Result<Bits, String> {
    match text {
        "8" => Ok(Bits::Int8),
        "4" => Ok(Bits::Int4),
        _ => Err("must be 8 or 4".to_string()),
    }
}
