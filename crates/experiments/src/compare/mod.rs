//! Comparison of two models on the same tokens, and of two devices on the same model.

mod calibration;
mod devices;
mod passages;
mod settings;
#[cfg(test)]
mod tests;

use nextword_data::{EvalWindows, Tokenizer};
use nextword_eval::{TokenScore, score_tokens};
use nextword_model::Transformer;
use serde::{Deserialize, Serialize};
use std::time::Instant;

pub use calibration::Calibration;
pub use devices::{DeviceComparison, compare_devices};
pub use passages::{Passage, PassageToken};
pub use settings::{SettingDifference, differing_settings};

use crate::ExperimentError;
use crate::statistics::{BlockSum, Interval, bootstrap_mean};

/// Tokens of a block of the bootstrap.
pub const BLOCK_TOKENS: usize = 256;

/// Samples of the bootstrap.
const BOOTSTRAP_SAMPLES: usize = 2000;

/// Seed of the bootstrap, so that a comparison can be repeated.
const BOOTSTRAP_SEED: u64 = 1;

/// Passages in which the models differ most.
const PASSAGES: usize = 5;

/// One model of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelScores {
    /// Nats per token.
    pub loss: f64,
    /// How well probabilities match frequencies.
    pub calibration: Calibration,
    /// Tokens scored per second.
    pub tokens_per_second: f64,
}

/// Two models on the same tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Number of predicted tokens.
    pub tokens: usize,
    /// The first model.
    pub a: ModelScores,
    /// The second model.
    pub b: ModelScores,
    /// The loss of `b` minus that of `a`, nats per token, with a 95 % interval from the bootstrap over blocks of
    /// [`BLOCK_TOKENS`] tokens; `None` for fewer than two blocks.
    pub difference: Option<Interval>,
    /// The share of tokens that `b` predicts with a higher probability.
    pub b_better: f64,
    /// Where the models differ most, the largest difference first.
    pub passages: Vec<Passage>,
}

/// Scores `windows` with both models and compares the results token by token. `tokenizer` is that of both models, for the
/// texts of [`Comparison::passages`]. `on_window` receives the number of windows that are done, of twice those of `windows`.
///
/// # Errors
/// [`ExperimentError::Eval`] if the windows do not fit a model.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{Dataset, EvalWindows, Packing, TokenizerConfig};
/// use nextword_experiments::compare::compare;
/// use nextword_model::{ModelConfig, Transformer};
///
/// let data = Dataset::from_text(&"to be or not to be ".repeat(100), &TokenizerConfig::chars())?;
/// let config = ModelConfig {
///     vocab_size: data.tokenizer.vocab_size(), context_length: 32, n_layers: 1, d_model: 16, n_heads: 2,
///     ..ModelConfig::default()
/// };
/// let [a, b] = [1, 2].map(|seed| config.init(&Device::flex(), seed));
/// let windows = EvalWindows::new(data.train.clone(), 32, Packing::Packed, 0)?;
/// let comparison = compare(&a?, &b?, &windows, &*data.tokenizer, &mut |_| {})?;
/// // Untrained models are about equally bad.
/// assert!(comparison.difference.unwrap().mean.abs() < 0.1);
/// assert_eq!(comparison.passages.len(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compare(
    a: &Transformer,
    b: &Transformer,
    windows: &EvalWindows,
    tokenizer: &dyn Tokenizer,
    on_window: &mut dyn FnMut(usize),
) -> Result<Comparison, ExperimentError> {
    let (a_scores, a) = score(a, windows, on_window)?;
    let (b_scores, b) = score(b, windows, &mut |done| on_window(windows.len() + done))?;
    let differences: Vec<f64> = a_scores
        .iter()
        .zip(&b_scores)
        .map(|(a, b)| b.nats - a.nats)
        .collect();
    let better = differences.iter().filter(|difference| **difference < 0.0);
    Ok(Comparison {
        tokens: differences.len(),
        a,
        b,
        b_better: better.count() as f64 / differences.len().max(1) as f64,
        difference: bootstrap_mean(&blocks(&differences), BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED),
        passages: passages::largest(&a_scores, &b_scores, tokenizer, PASSAGES),
    })
}

fn score(
    model: &Transformer,
    windows: &EvalWindows,
    on_window: &mut dyn FnMut(usize),
) -> Result<(Vec<TokenScore>, ModelScores), ExperimentError> {
    let start = Instant::now();
    let scores = score_tokens(model, windows, on_window)?;
    let count = scores.len().max(1) as f64;
    let summary = ModelScores {
        loss: scores.iter().map(|score| score.nats).sum::<f64>() / count,
        calibration: Calibration::of(&scores),
        tokens_per_second: count / start.elapsed().as_secs_f64().max(1e-9),
    };
    Ok((scores, summary))
}

fn blocks(differences: &[f64]) -> Vec<BlockSum> {
    let blocks = differences.chunks(BLOCK_TOKENS);
    blocks
        .map(|block| BlockSum {
            sum: block.iter().sum(),
            count: block.len() as u64,
        })
        .collect()
}
