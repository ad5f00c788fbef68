//! Compares the model's values with the recomputed ones.

use serde::Serialize;

use crate::array::Array;
use crate::graph::PROBABILITIES;

/// The result of the independent recomputation in f64.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// The largest differences that count as rounding errors.
    pub tolerance: Tolerance,
    /// The largest difference of each tensor.
    pub differences: Vec<Difference>,
    /// Tensors of the graph that the forward pass did not report.
    pub missing: Vec<String>,
    /// Tensors that the forward pass reported and the graph does not have.
    #[serde(rename = "unknown")]
    pub unexpected: Vec<String>,
}

/// The largest differences that count as rounding errors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// For a tensor recomputed from the model's own operands: relative to the tensor's largest absolute
    /// value plus 0.1.
    pub step: f64,
    /// For a tensor recomputed from weights and token ids alone: relative to the tensor's largest
    /// absolute value, but at least 1. `None` for quantized models, whose rounding errors a norm of
    /// small values can amplify without bound.
    #[serde(rename = "whole")]
    pub end_to_end: Option<f64>,
}

impl Tolerance {
    /// Rounding errors of f32.
    pub(crate) const F32: Self = Self {
        step: 3e-5,
        end_to_end: Some(1e-4),
    };

    /// Quantized models round the inputs of matrix products to 16 bits.
    pub(crate) const QUANTIZED: Self = Self {
        step: 3e-4,
        end_to_end: None,
    };
}

/// The difference between one tensor and its recomputation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The tensor.
    pub name: String,
    /// Number of values compared, without masked ones.
    pub count: usize,
    /// The largest difference from the recomputation from weights and token ids alone; infinite if a
    /// value is masked on one side only.
    pub largest: f64,
    /// The largest difference from the recomputation from the model's own operands.
    pub step: f64,
    /// The tensor's largest absolute value.
    pub scale: f64,
}

impl Verification {
    pub(crate) fn new(tolerance: Tolerance) -> Self {
        Self {
            tolerance,
            differences: Vec::new(),
            missing: Vec::new(),
            unexpected: Vec::new(),
        }
    }

    /// Compares `value`, of which `count` values are not masked, with its recomputation from weights and
    /// token ids alone (`reference`), and from the model's own operands (`step`).
    pub(crate) fn compare(
        &mut self,
        name: &str,
        count: usize,
        value: &Array,
        reference: &Array,
        step: &Array,
    ) {
        let finite = reference.data.iter().filter(|x| x.is_finite());
        self.differences.push(Difference {
            name: name.to_string(),
            count,
            largest: max_difference(value, reference),
            step: max_difference(value, step),
            scale: finite.fold(0.0, |max, x| max.max(x.abs())),
        });
    }

    /// The tensor with the largest difference.
    pub fn worst(&self) -> Option<&Difference> {
        let all = self.differences.iter();
        all.max_by(|a, b| a.largest.total_cmp(&b.largest))
    }

    /// Whether every tensor was reported and equals its recomputation up to rounding.
    pub fn is_verified(&self) -> bool {
        let Tolerance { step, end_to_end } = self.tolerance;
        // No probability changes by more than the largest change of a logit.
        let logits = self.differences.iter().find(|d| d.name == "logits");
        let follows_logits = |d: &Difference| {
            d.name == PROBABILITIES && logits.is_some_and(|logits| d.largest <= logits.largest)
        };
        let is_close = |d: &Difference| {
            d.step <= step * (d.scale + 0.1)
                && (follows_logits(d)
                    || end_to_end.is_none_or(|limit| d.largest <= limit * d.scale.max(1.0)))
        };
        let is_complete = self.missing.is_empty() && self.unexpected.is_empty();
        is_complete && !self.differences.is_empty() && self.differences.iter().all(is_close)
    }

    /// The result in one sentence.
    pub fn summary(&self) -> String {
        let count: usize = self.differences.iter().map(|d| d.count).sum();
        let Some(worst) = self.worst() else {
            return "not verified: nothing was recomputed".to_string();
        };
        let (largest, name) = (worst.largest, &worst.name);
        let status = if self.is_verified() {
            "verified"
        } else {
            "NOT verified"
        };
        let mut summary = format!(
            "{status}: {count} values in {} tensors recomputed from weights and token ids in 64-bit \
             floats; largest difference {largest:.1e}, in {name}",
            self.differences.len()
        );
        if self.tolerance.end_to_end.is_none() {
            let step = self.differences.iter().map(|d| d.step).fold(0.0, f64::max);
            summary = format!(
                "{summary}; {step:.1e} within a single operation, which is the criterion for a quantized model"
            );
        }
        for (label, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                summary = format!("{summary}; {label}: {}", names.join(", "));
            }
        }
        summary
    }
}

/// The largest absolute difference; infinite if a value is masked on one side only.
fn max_difference(value: &Array, other: &Array) -> f64 {
    let pairs = value.data.iter().zip(&other.data);
    let differences = pairs.map(|(a, b)| match (a - b).abs() {
        _ if a.total_cmp(b).is_eq() => 0.0, // Also equal: masked on both sides.
        difference if difference.is_nan() => f64::INFINITY,
        difference => difference,
    });
    differences.fold(0.0, f64::max)
}
