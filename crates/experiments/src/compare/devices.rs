//! The same model on two devices.

use nextword_data::EvalWindows;
use nextword_eval::{TokenScore, for_each_logits};
use nextword_model::Transformer;
use serde::{Deserialize, Serialize};

use crate::ExperimentError;
use crate::statistics::max_or_nan;

/// The largest differences between two devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceComparison {
    /// Number of predicted tokens.
    pub tokens: usize,
    /// Nats per token on the first device.
    pub loss_a: f64,
    /// Nats per token on the second device.
    pub loss_b: f64,
    /// The largest difference of a logit.
    pub max_logit_difference: f64,
    /// The largest logit on the first device, by magnitude: rounding is relative to it.
    pub max_logit: f64,
    /// The largest difference of a token's loss, in nats.
    pub max_loss_difference: f64,
    /// The share of tokens for which both devices have the same most likely token.
    pub same_prediction: f64,
}

/// Computes logits and losses of the same model, loaded onto two devices as `a` and `b`.
///
/// # Errors
/// [`ExperimentError::Eval`] if the windows do not fit the model.
pub fn compare_devices(
    a: &Transformer,
    b: &Transformer,
    windows: &EvalWindows,
    on_window: &mut dyn FnMut(usize),
) -> Result<DeviceComparison, ExperimentError> {
    let mut found = DeviceComparison::default();
    let mut same = 0_usize;
    for (window, batch) in windows.batches(1).enumerate() {
        let batch = batch.map_err(nextword_eval::EvalError::from)?;
        let mut expected: Vec<Vec<f32>> = Vec::new();
        for_each_logits(a, &batch, &mut |_, logits| expected.push(logits.to_vec()))?;
        let mut expected = expected.into_iter();
        for_each_logits(b, &batch, &mut |target, logits| {
            let first = expected.next().unwrap_or_default();
            for (a, b) in first.iter().zip(logits) {
                let difference = f64::from(a - b).abs();
                found.max_logit_difference = max_or_nan(found.max_logit_difference, difference);
                found.max_logit = max_or_nan(found.max_logit, f64::from(a.abs()));
            }
            let (a, b) = (
                TokenScore::new(target, &first),
                TokenScore::new(target, logits),
            );
            found.tokens += 1;
            found.loss_a += a.nats;
            found.loss_b += b.nats;
            found.max_loss_difference =
                max_or_nan(found.max_loss_difference, (a.nats - b.nats).abs());
            same += usize::from(a.predicted == b.predicted);
        })?;
        on_window(window + 1);
    }
    let count = found.tokens.max(1) as f64;
    found.loss_a /= count;
    found.loss_b /= count;
    found.same_prediction = same as f64 / count;
    Ok(found)
}
