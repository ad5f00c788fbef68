//! What a model predicts for each token of a text.

use nextword_data::{EvalWindows, IGNORE, TokenBatch};
use nextword_model::{ForwardContext, Transformer, weights};

use crate::EvalError;
use crate::batch::{batch_context, batch_tokens, check_batch};

/// Logits that are computed at a time: 64 MiB.
const MAX_LOGITS: usize = 16 << 20;

/// What a model predicts for one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// The token that comes next.
    pub target: u32,
    /// `-ln p(target)`.
    pub nats: f64,
    /// The token with the highest probability.
    pub predicted: u32,
    /// Its probability.
    pub confidence: f64,
}

impl TokenScore {
    /// The score of `target` after a model computed `logits`.
    ///
    /// ```
    /// use nextword_eval::TokenScore;
    ///
    /// let score = TokenScore::new(0, &[0.0, 1.0]);
    /// assert_eq!(score.predicted, 1);
    /// assert!((score.confidence - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-12);
    /// assert!((score.nats + (1.0 - score.confidence).ln()).abs() < 1e-12);
    /// ```
    pub fn new(target: u32, logits: &[f32]) -> Self {
        let (mut predicted, mut highest) = (0, f32::NEG_INFINITY);
        for (id, logit) in logits.iter().enumerate() {
            if *logit > highest {
                (predicted, highest) = (id as u32, *logit);
            }
        }
        let highest = f64::from(highest);
        let shifted = |logit: f32| f64::from(logit) - highest;
        let sum: f64 = logits.iter().map(|logit| shifted(*logit).exp()).sum();
        let logit = logits.get(target as usize).copied();
        Self {
            target,
            nats: sum.ln() - shifted(logit.unwrap_or(f32::NEG_INFINITY)),
            predicted,
            confidence: sum.recip(),
        }
    }
}

/// The scores of all targets of `windows`, in order. Softmax and logarithm are computed in f64. `on_window` receives the
/// number of windows that are done.
///
/// # Errors
/// As [`evaluate`](crate::evaluate).
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{EvalWindows, Packing, Tokens};
/// use nextword_eval::{evaluate, score_tokens};
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let tokens = Tokens::from_ids([1, 2, 3, 4, 5].repeat(20));
/// let windows = EvalWindows::new(tokens, 64, Packing::Packed, 0)?;
/// let scores = score_tokens(&model, &windows, &mut |_| {})?;
/// assert_eq!(scores[1].target, 3);
/// let mean = scores.iter().map(|score| score.nats).sum::<f64>() / scores.len() as f64;
/// assert!((mean - evaluate(&model, &windows, 8)?.nats_per_token).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn score_tokens(
    model: &Transformer,
    windows: &EvalWindows,
    on_window: &mut dyn FnMut(usize),
) -> Result<Vec<TokenScore>, EvalError> {
    let mut scores = Vec::new();
    let rows = rows_at_a_time(model, windows.context_length());
    for (index, batch) in windows.batches(rows).enumerate() {
        for_each_logits(model, &batch?, &mut |target, logits| {
            scores.push(TokenScore::new(target, logits));
        })?;
        on_window(windows.len().min((index + 1) * rows));
    }
    Ok(scores)
}

fn rows_at_a_time(model: &Transformer, seq: usize) -> usize {
    let row = seq.saturating_mul(model.config().vocab_size).max(1);
    (MAX_LOGITS / row).clamp(1, 16)
}

/// Calls `visit` with each target of `batch` and the logits that the model computes for it.
///
/// # Errors
/// [`EvalError::UnknownToken`] and [`EvalError::TooLong`] if the batch does not fit the model.
pub fn for_each_logits(
    model: &Transformer,
    batch: &TokenBatch,
    visit: &mut dyn FnMut(u32, &[f32]),
) -> Result<(), EvalError> {
    check_batch(model, batch)?;
    let device = model.device();
    let mut ctx = batch_context(ForwardContext::inference(), batch, &device);
    let logits = model.forward(batch_tokens(batch, &device), &mut ctx);
    let logits = weights::to_f32_vec(logits.into_data());
    let rows = logits.chunks_exact(model.config().vocab_size);
    for (target, logits) in batch.targets.iter().zip(rows) {
        if *target != IGNORE {
            visit(*target, logits);
        }
    }
    Ok(())
}
