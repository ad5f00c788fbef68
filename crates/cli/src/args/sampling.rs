//! Which tokens may be drawn: the options that all commands that draw have in common.

use clap::Args;
use nextword_generate::SamplingConfig;

/// Cuts that leave the likeliest tokens.
#[derive(Debug, Args)]
pub(crate) struct CutArgs {
    /// Keep the K likeliest tokens [default: all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the fewest likeliest tokens with this probability together [default: all]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    top_p: Option<f64>,
    /// Keep tokens with at least this share of the likeliest one's probability [default: all]
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    min_p: Option<f64>,
}

impl CutArgs {
    /// Draws at `temperature` from `seed`, after these cuts.
    pub(crate) fn sampling(&self, temperature: f64, seed: u64) -> SamplingConfig {
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
