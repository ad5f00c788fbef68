//! Checks of a device: the same model computes the same on it as on another one, in every way of computing it.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use nextword_base::CounterRng;
use nextword_data::{EvalWindows, Packing, TokenBatch, Tokens};
use nextword_eval::{EvalError, batch_tokens};
use nextword_model::{
    ForwardContext, InitConfig, KvCache, ModelConfig, Transformer, presets, resident_memory,
    weights,
};
use nextword_train::{OptimizerConfig, Stepper, TrainError, forward_backward};
use serde::{Deserialize, Serialize};

use crate::ExperimentError;
use crate::statistics::max_or_nan;

/// Size of the model that is checked.
const VOCABULARY: usize = 67;
const CONTEXT: usize = 24;
const ROWS: usize = 4;

/// Differences up to this share of the largest value are rounding.
const TOLERANCE: f64 = 2e-4;

/// Steps before and during the measurement of memory.
const WARMUP_STEPS: u64 = 20;
const MEASURED_STEPS: u64 = 100;

/// Memory that may be added meanwhile by allocators and drivers.
const MAX_GROWTH: f64 = (24 << 20) as f64;

/// Whether a check passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    /// The value is within its limit.
    Passed,
    /// The value exceeds its limit, or is NaN.
    Failed,
    /// The system does not report what is needed.
    NotMeasured,
}

/// One check of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineCheck {
    /// What is compared.
    pub name: String,
    /// Whether it passed.
    pub verdict: CheckOutcome,
    /// The largest difference, relative to the largest value; of memory, bytes.
    pub value: f64,
    /// The largest value that passes.
    pub limit: f64,
}

impl MachineCheck {
    fn new(name: &str, value: f64, limit: f64) -> Self {
        // NaN fails.
        let verdict = if value <= limit {
            CheckOutcome::Passed
        } else {
            CheckOutcome::Failed
        };
        Self {
            name: name.to_string(),
            verdict,
            value,
            limit,
        }
    }

    fn close(name: &str, values: &[f32], expected: &[f32]) -> Self {
        Self::new(name, relative_difference(values, expected), TOLERANCE)
    }
}

/// The largest difference, relative to the largest expected value; infinite for different lengths.
fn relative_difference(values: &[f32], expected: &[f32]) -> f64 {
    if values.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |largest, value| {
        largest.max(f64::from(value.abs()))
    });
    let differences = values.iter().zip(expected);
    let differences = differences.map(|(value, expected)| f64::from((value - expected).abs()));
    let worst = differences.fold(0.0_f64, max_or_nan);
    worst / largest
}

/// Checks `device` against `reference` with a small model: logits and gradients; with and without a KV cache; rows alone
/// and in a batch; micro-batches and one batch; and memory while training.
///
/// # Errors
/// If the model cannot be created on a device.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_experiments::doctor::{CheckOutcome, check_device};
///
/// let checks = check_device(&Device::flex(), &Device::flex())?;
/// assert!(checks.len() >= 6);
/// assert!(checks.iter().all(|check| check.verdict != CheckOutcome::Failed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn check_device(
    device: &Device,
    reference: &Device,
) -> Result<Vec<MachineCheck>, ExperimentError> {
    let config = config();
    let init = |device: &Device| config.init(device, 1).map_err(TrainError::from);
    let (model, expected) = (init(device)?, init(reference)?);
    let batch = batches(0, ROWS)?;
    let whole = logits(&model, batch_tokens(&batch, device));
    let reference_logits = logits(&expected, batch_tokens(&batch, reference));
    let (loss, gradients) = loss_and_gradients(model.clone(), std::slice::from_ref(&batch));
    let (expected_loss, expected_gradients) =
        loss_and_gradients(expected, std::slice::from_ref(&batch));
    let halves = [batches(0, ROWS / 2)?, batches(ROWS / 2, ROWS)?];
    let (_, accumulated) = loss_and_gradients(model.clone(), &halves);
    Ok(vec![
        MachineCheck::close("logits", &whole, &reference_logits),
        MachineCheck::close("loss", &[loss], &[expected_loss]),
        MachineCheck::close("gradients", &gradients, &expected_gradients),
        MachineCheck::close(
            "with and without KV cache",
            &cached_logits(&model, &batch),
            &whole,
        ),
        MachineCheck::close(
            "rows alone and in a batch",
            &single_logits(&model, &batch),
            &whole,
        ),
        MachineCheck::close("micro-batches and one batch", &accumulated, &gradients),
        memory_growth(model)?,
    ])
}

/// A small model with rotary positions, gated feed-forward layers and grouped heads.
fn config() -> ModelConfig {
    ModelConfig {
        context_length: CONTEXT,
        n_layers: 2,
        n_heads: 4,
        d_model: 32,
        init: InitConfig {
            std: 0.2,
            scale_output: false,
        },
        ..presets::llama_like(VOCABULARY)
    }
}

/// The rows `first..last` of the batch that is computed.
fn batches(first: usize, last: usize) -> Result<TokenBatch, ExperimentError> {
    let rng = CounterRng::new(1).named("doctor");
    let count = (ROWS * CONTEXT + 1) as u64;
    let ids = (0..count).map(|at| rng.below(at, VOCABULARY as u64) as u32);
    let tokens = Tokens::from_ids(ids.collect());
    let windows = EvalWindows::new(tokens, CONTEXT, Packing::Packed, 0).map_err(EvalError::from)?;
    Ok(windows.batch(first..last).map_err(EvalError::from)?)
}

fn logits(model: &Transformer, tokens: Tensor<2, Int>) -> Vec<f32> {
    let logits = model.forward(tokens, &mut ForwardContext::inference());
    weights::to_f32_vec(logits.into_data())
}

/// The logits of each row, computed one token at a time.
fn cached_logits(model: &Transformer, batch: &TokenBatch) -> Vec<f32> {
    let tokens = batch_tokens(batch, &model.device());
    let mut all = Vec::new();
    for row in tokens.split(1, 0) {
        let mut cache = KvCache::new(model.config(), 1, &model.device());
        for token in row.split(1, 1) {
            let logits = model.forward_cached(token, &mut cache, &[0]);
            all.extend(weights::to_f32_vec(logits.into_data()));
        }
    }
    all
}

/// The logits of each row, computed alone.
fn single_logits(model: &Transformer, batch: &TokenBatch) -> Vec<f32> {
    let rows = batch_tokens(batch, &model.device()).split(1, 0);
    rows.into_iter()
        .flat_map(|row| logits(model, row))
        .collect()
}

fn loss_and_gradients(model: Transformer, batches: &[TokenBatch]) -> (f32, Vec<f32>) {
    let (loss, gradients) = forward_backward(&model.train(), batches, 1, 0, false);
    let values = gradients
        .iter()
        .flat_map(|(_, gradient)| weights::to_f32_vec(gradient.clone().into_data()));
    let loss = weights::to_f32_vec(loss.into_data());
    (loss.first().copied().unwrap_or(f32::NAN), values.collect())
}

/// How much the memory of the process grows over 100 training steps.
fn memory_growth(model: Transformer) -> Result<MachineCheck, ExperimentError> {
    let name = "memory over 100 training steps";
    let mut stepper = Stepper::new(model.train(), OptimizerConfig::default(), 1, false);
    let batch = [batches(0, ROWS)?];
    let mut before = None;
    for step in 0..WARMUP_STEPS + MEASURED_STEPS {
        if step == WARMUP_STEPS {
            before = resident_memory();
        }
        stepper.step(&batch, step, 1e-3, 1e-3);
    }
    let (Some(before), Some(after)) = (before, resident_memory()) else {
        return Ok(MachineCheck {
            verdict: CheckOutcome::NotMeasured,
            ..MachineCheck::new(name, 0.0, MAX_GROWTH)
        });
    };
    let growth = after.saturating_sub(before) as f64;
    Ok(MachineCheck::new(name, growth, MAX_GROWTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)] // Simple values.
    fn differences_are_relative_to_the_largest_value_and_nan_fails() {
        assert_eq!(relative_difference(&[1.0, 10.5], &[1.0, 10.0]), 0.05);
        assert_eq!(relative_difference(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        let check = MachineCheck::close("x", &[f32::NAN, 1.0], &[1.0, 1.0]);
        assert_eq!(check.verdict, CheckOutcome::Failed);
        let check = MachineCheck::close("x", &[1.0, 1.001], &[1.0, 1.0]);
        assert_eq!(check.verdict, CheckOutcome::Failed);
        let check = MachineCheck::close("x", &[1.0, 1.0001], &[1.0, 1.0]);
        assert_eq!(check.verdict, CheckOutcome::Passed);
    }
}
