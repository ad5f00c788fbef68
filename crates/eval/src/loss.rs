//! Loss over windows of ids.

use nextword_data::{EvalWindows, IGNORE, TokenBatch};
use nextword_model::{ForwardContext, Transformer, weights};
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::batch::{batch_context, batch_tokens, check_batch};
use crate::padding::without_padding;

/// The loss of a model on a set of tokens.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{EvalWindows, Packing, Tokens};
/// use nextword_eval::evaluate;
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let tokens = Tokens::from_ids((0..65).collect());
/// let loss = evaluate(&model, &EvalWindows::new(tokens, 64, Packing::Packed, 0)?, 8)?;
/// assert_eq!(loss.tokens, 64);
/// assert!((loss.perplexity - loss.nats_per_token.exp()).abs() < 1e-9);
/// assert_eq!(loss.bits_per_byte, None); // ids alone have no text
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    /// The mean of `-ln p(token)` over all predicted tokens. NaN or infinite if the model produced NaN
    /// or infinity; the caller decides whether that is an error.
    pub nats_per_token: f64,
    /// Number of predicted tokens.
    pub tokens: u64,
    /// `exp(nats_per_token)`: the number of equally likely tokens with the same loss.
    pub perplexity: f64,
    /// The total loss in bits per byte of text that the predicted tokens stand for: comparable between
    /// tokenizers. `None` if the number of bytes is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
}

/// The loss of one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLoss {
    /// The sum of `-ln p` over the targets of the batch.
    pub nats: f64,
    /// Number of its targets.
    pub tokens: u64,
}

impl LossReport {
    /// The report of batches, which are summed in the given order, as [`evaluate`] does.
    ///
    /// ```
    /// use nextword_eval::{BatchLoss, LossReport};
    ///
    /// let batch = |nats, tokens| BatchLoss { nats, tokens };
    /// let report = LossReport::of_batches([batch(3.0, 2), batch(1.0, 2)]);
    /// assert_eq!((report.nats_per_token, report.tokens), (1.0, 4));
    /// ```
    pub fn of_batches(batches: impl IntoIterator<Item = BatchLoss>) -> Self {
        let (mut nats, mut tokens) = (0.0, 0);
        for batch in batches {
            nats += batch.nats;
            tokens += batch.tokens;
        }
        Self::new(nats, tokens)
    }

    /// Creates a report from the sum of `-ln p` over `tokens` predicted tokens.
    pub(crate) fn new(nats: f64, tokens: u64) -> Self {
        let nats_per_token = nats / tokens as f64;
        Self {
            nats_per_token,
            tokens,
            perplexity: nats_per_token.exp(),
            bits_per_byte: None,
        }
    }

    /// Adds `bits_per_byte` for predicted tokens that stand for `bytes` bytes of text.
    pub(crate) fn with_bytes(self, bytes: u64) -> Self {
        let bits = self.nats_per_token * self.tokens as f64 / std::f64::consts::LN_2;
        Self {
            bits_per_byte: (bytes > 0).then(|| bits / bytes as f64),
            ..self
        }
    }
}

/// Computes the loss of `model` over all of `windows`, `batch_size` rows at a time (0 counts as 1).
///
/// Every predicted token has the same weight, regardless of its window. Batches are summed in order
/// in f64, so that results on the same device are reproducible. The model must not be on an autodiff
/// device; dropout is off.
///
/// # Errors
/// [`EvalError::UnknownToken`] and [`EvalError::TooLong`] if the windows do not fit the model; [`EvalError::Model`] for an
/// encoder without masked tokens, since it sees the next token;
/// [`EvalError::Data`] if they cannot be read.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{EvalWindows, Packing, Tokens};
/// use nextword_eval::evaluate;
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let tokens = Tokens::from_ids([1, 2, 3, 4, 5].repeat(40));
/// let windows = EvalWindows::new(tokens, 64, Packing::Packed, 0)?;
/// let loss = evaluate(&model, &windows, 8)?.nats_per_token;
/// assert!((loss - 65f64.ln()).abs() < 0.2); // an untrained model guesses
/// assert!((evaluate(&model, &windows, 1)?.nats_per_token - loss).abs() < 1e-6); // in smaller batches
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn evaluate(
    model: &Transformer,
    windows: &EvalWindows,
    batch_size: usize,
) -> Result<LossReport, EvalError> {
    evaluate_with(model, windows, batch_size, &mut |_| {})
}

/// Computes the loss of those batches of [`evaluate`] whose number, from 0, `is_selected`, in their order: for several
/// processes that share an evaluation. Each batch is computed when the iterator is asked for it, so that an evaluation
/// can show its progress and end early.
///
/// # Errors
/// Those of [`evaluate`], for each batch.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{EvalWindows, Packing, Tokens};
/// use nextword_eval::{LossReport, batch_losses, evaluate};
/// use nextword_model::presets;
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let windows = EvalWindows::new(Tokens::from_ids([1, 2, 3].repeat(70)), 64, Packing::Packed, 0)?;
/// let even = batch_losses(&model, &windows, 1, |batch| batch % 2 == 0).collect::<Result<Vec<_>, _>>()?;
/// let odd = batch_losses(&model, &windows, 1, |batch| batch % 2 == 1).collect::<Result<Vec<_>, _>>()?;
/// let report = LossReport::of_batches([even[0], odd[0], even[1], odd[1]]);
/// assert_eq!(report, evaluate(&model, &windows, 1)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn batch_losses(
    model: &Transformer,
    windows: &EvalWindows,
    batch_size: usize,
    is_selected: impl Fn(usize) -> bool,
) -> impl Iterator<Item = Result<BatchLoss, EvalError>> {
    let batches = windows.batches(batch_size).enumerate();
    let selected = batches.filter(move |(number, _)| is_selected(*number));
    selected.map(|(_, batch)| {
        let (nats, tokens) = batch_loss(model, batch?)?;
        Ok(BatchLoss { nats, tokens })
    })
}

/// As [`evaluate`]. `on_batch` receives the number of windows after each batch.
pub(crate) fn evaluate_with(
    model: &Transformer,
    windows: &EvalWindows,
    batch_size: usize,
    on_batch: &mut dyn FnMut(usize),
) -> Result<LossReport, EvalError> {
    let mut losses = Vec::new();
    let mut done = 0;
    for loss in batch_losses(model, windows, batch_size, |_| true) {
        losses.push(loss?);
        done = windows.len().min(batch_size.max(1).saturating_add(done));
        on_batch(done);
    }
    Ok(LossReport::of_batches(losses))
}

/// The sum of `-ln p` over the targets of `batch`, and their number. Padding is not computed.
pub(crate) fn batch_loss(model: &Transformer, batch: TokenBatch) -> Result<(f64, u64), EvalError> {
    check_batch(model, &batch)?;
    let (mut nats, mut count) = (0.0, 0);
    for batch in without_padding(batch) {
        let device = model.device();
        let mut ctx = batch_context(ForwardContext::inference(), &batch, &device);
        let tokens = batch_tokens(&batch, &device);
        let sum = model.loss_sum(tokens, &batch.targets, &mut ctx);
        nats += weights::to_f32_vec(sum.into_data())
            .iter()
            .map(|nats| f64::from(*nats))
            .sum::<f64>();
        count += batch.targets.iter().filter(|id| **id != IGNORE).count();
    }
    Ok((nats, count as u64))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use burn::tensor::{Device, Int, Tensor, TensorData};
    use nextword_data::{Packing, Tokens};
    use nextword_model::{Architecture, InitConfig, ModelConfig};

    use super::*;

    pub(crate) fn model(vocab_size: usize) -> Transformer {
        let config = ModelConfig {
            vocab_size,
            context_length: 8,
            n_layers: 2,
            n_heads: 2,
            d_model: 8,
            init: InitConfig {
                std: 0.4,
                scale_output: false,
            },
            ..ModelConfig::default()
        };
        config.init(&Device::flex(), 5).unwrap()
    }

    /// The sum of `-ln p` over all tokens of a window except the first: one forward pass per token,
    /// softmax in f64.
    pub(crate) fn naive(model: &Transformer, window: &[u32]) -> f64 {
        (1..window.len())
            .map(|at| -log_prob(model, &window[..at], window[at]))
            .sum()
    }

    fn log_prob(model: &Transformer, prefix: &[u32], token: u32) -> f64 {
        let ids: Vec<i32> = prefix.iter().map(|id| id.cast_signed()).collect();
        let data = TensorData::new(ids, [1, prefix.len()]);
        let tokens = Tensor::<2, Int>::from_data(data, &model.device());
        let logits = weights::to_f32_vec(
            model
                .forward(tokens, &mut ForwardContext::inference())
                .into_data(),
        );
        let last = &logits[logits.len() - model.config().vocab_size..];
        let sum: f64 = last.iter().map(|l| f64::from(*l).exp()).sum();
        f64::from(last[token as usize]) - sum.ln()
    }

    fn ids(len: u32) -> Vec<u32> {
        (0..len).map(|i| (i * i * 7 + i * 3 + i / 5) % 11).collect()
    }

    #[test]
    fn evaluate_equals_a_token_by_token_computation() {
        let model = model(11);
        // 3 windows of 8 targets and one of 5, which a mean of means would overweight.
        let ids = ids(30);
        let windows =
            EvalWindows::new(Tokens::from_ids(ids.clone()), 8, Packing::Packed, 0).unwrap();
        let expected: f64 = (0..29)
            .step_by(8)
            .map(|s| naive(&model, &ids[s..(s + 9).min(30)]))
            .sum();
        for batch_size in [0, 1, 3, 100] {
            let report = evaluate(&model, &windows, batch_size).unwrap();
            assert_eq!(report.tokens, 29);
            let difference = report.nats_per_token - expected / 29.0;
            assert!(
                difference.abs() < 1e-5,
                "batch size {batch_size}: {difference}"
            );
            assert!((report.perplexity.ln() - report.nats_per_token).abs() < 1e-12);
            assert_eq!(report.bits_per_byte, None);
        }
    }

    #[test]
    fn padding_is_not_counted() {
        let model = model(11);
        let documents = [ids(4), ids(13), ids(2)];
        let tokens = Tokens::from_documents(documents.clone());
        let windows = EvalWindows::new(tokens, 8, Packing::Documents, 10).unwrap();
        let report = evaluate(&model, &windows, 2).unwrap();
        let windows_of_ids = [
            &documents[0][..],
            &documents[1][..9],
            &documents[1][8..],
            &documents[2][..],
        ];
        let expected: f64 = windows_of_ids.iter().map(|ids| naive(&model, ids)).sum();
        assert_eq!(report.tokens, 3 + 12 + 1);
        assert!((report.nats_per_token - expected / 16.0).abs() < 1e-5);
    }

    /// The loss of a short text has the bits that it has in a row padded to the whole context.
    #[test]
    fn padding_changes_no_bit_of_a_loss() {
        let config = ModelConfig {
            context_length: 200,
            d_model: 32,
            n_heads: 4,
            ..model(11).config().clone()
        };
        let alibi = ModelConfig {
            position: nextword_model::Position::Alibi,
            windows: vec![5, 0],
            ..config.clone()
        };
        for config in [config, alibi] {
            let model = config.init(&Device::flex(), 5).unwrap();
            for len in [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 129, 199] {
                let text = ids(len + 1);
                let (mut inputs, mut targets) = (text.clone(), text[1..].to_vec());
                inputs.truncate(len as usize);
                inputs.resize(200, 0);
                targets.resize(200, IGNORE);
                let data: Vec<i32> = inputs.iter().map(|id| id.cast_signed()).collect();
                let tokens =
                    Tensor::<2, Int>::from_data(TensorData::new(data, [1, 200]), &Device::flex());
                let padded = model.loss_sum(tokens, &targets, &mut ForwardContext::inference());
                let padded = f64::from(weights::to_f32_vec(padded.into_data())[0]);
                let batch = TokenBatch {
                    batch: 1,
                    seq: 200,
                    inputs,
                    targets,
                    ..TokenBatch::default()
                };
                let (nats, count) = batch_loss(&model, batch).unwrap();
                assert_eq!(count, u64::from(len));
                assert_eq!(nats.to_bits(), padded.to_bits(), "{len} tokens");
            }
        }
    }

    #[test]
    fn a_limit_selects_the_same_windows_each_time() {
        let model = model(11);
        let tokens = Tokens::from_ids(ids(100));
        let windows = EvalWindows::new(tokens, 8, Packing::Packed, 0)
            .unwrap()
            .limit(4);
        let report = evaluate(&model, &windows, 3).unwrap();
        assert_eq!(report, evaluate(&model, &windows, 3).unwrap());
        assert_eq!(report.tokens, 32);
    }

    #[test]
    fn an_encoder_is_not_evaluated_on_next_tokens() {
        let config = ModelConfig {
            architecture: Architecture::Encoder,
            ..model(11).config().clone()
        };
        let encoder = config.init(&Device::flex(), 5).unwrap();
        let windows = EvalWindows::new(Tokens::from_ids(ids(30)), 8, Packing::Packed, 0).unwrap();
        let error = evaluate(&encoder, &windows, 2).unwrap_err().to_string();
        assert!(error.contains("predict the next token"), "{error}");
    }

    #[test]
    fn data_that_does_not_fit_the_model_is_an_error() {
        let model = model(7);
        let windows =
            |len| EvalWindows::new(Tokens::from_ids(ids(30)), len, Packing::Packed, 0).unwrap();
        let error = evaluate(&model, &windows(8), 2).unwrap_err();
        assert!(
            matches!(error, EvalError::UnknownToken { vocab_size: 7, .. }),
            "{error}"
        );
        let error = evaluate(&model, &windows(9), 2).unwrap_err();
        assert!(
            matches!(
                error,
                EvalError::TooLong {
                    seq: 9,
                    context_length: 8
                }
            ),
            "{error}"
        );
    }
}
