//! How far the model's numbers are from the recomputed ones.

use serde::Serialize;

use crate::array::Array;

/// Differences up to this part of a tensor's largest number (or of 1, if that is more) are rounding of
/// f32.
pub(crate) const TOLERANCE: f64 = 1e-4;

/// The same for quantized models, which round what goes into a product of few tokens to 16 bits.
pub(crate) const QUANTIZED: f64 = 1e-3;

/// What the independent recomputation in f64 found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The largest difference that counts as rounding, as a part of the tensor's largest number (or of
    /// 1, if that is more).
    pub tolerance: f64,
    /// For each tensor the largest difference.
    pub differences: Vec<Difference>,
    /// Tensors that the graph has and the forward pass did not show.
    pub missing: Vec<String>,
    /// Tensors that the forward pass showed and the graph does not have.
    pub unknown: Vec<String>,
}

/// How far one tensor is from its recomputation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The tensor.
    pub name: String,
    /// How many numbers were compared.
    pub count: usize,
    /// The largest difference; infinite if a number is masked on one side only.
    pub largest: f64,
    /// The tensor's largest number.
    pub scale: f64,
}

impl Verdict {
    pub(crate) fn new(tolerance: f64) -> Self {
        Self {
            tolerance,
            differences: Vec::new(),
            missing: Vec::new(),
            unknown: Vec::new(),
        }
    }

    pub(crate) fn compare(&mut self, name: &str, value: &Array, exact: &Array) {
        let (mut largest, mut scale) = (0.0_f64, 0.0_f64);
        for (value, exact) in value.data.iter().zip(&exact.data) {
            if exact.is_finite() {
                scale = scale.max(exact.abs());
            } else if value.total_cmp(exact).is_eq() {
                continue; // Masked on both sides.
            }
            let difference = (value - exact).abs();
            largest = largest.max(if difference.is_nan() {
                f64::INFINITY
            } else {
                difference
            });
        }
        self.differences.push(Difference {
            name: name.to_string(),
            count: value.data.len(),
            largest,
            scale,
        });
    }

    /// The tensor that is farthest off.
    pub fn worst(&self) -> Option<&Difference> {
        let all = self.differences.iter();
        all.max_by(|a, b| a.largest.total_cmp(&b.largest))
    }

    /// Whether every tensor is there and equals its recomputation but for rounding.
    pub fn is_verified(&self) -> bool {
        let close = |d: &Difference| d.largest <= self.tolerance * d.scale.max(1.0);
        let all = self.missing.is_empty() && self.unknown.is_empty();
        all && !self.differences.is_empty() && self.differences.iter().all(close)
    }

    /// The verdict in a sentence.
    pub fn sentence(&self) -> String {
        let numbers: usize = self.differences.iter().map(|d| d.count).sum();
        let Some(worst) = self.worst() else {
            return "not verified: nothing was computed again".to_string();
        };
        let (largest, name) = (worst.largest, &worst.name);
        let what = if self.is_verified() {
            "verified"
        } else {
            "NOT verified"
        };
        let mut sentence = format!(
            "{what}: {numbers} numbers in {} tensors computed again from weights and token ids in \
             64-bit floats; largest difference {largest:.1e}, in {name}",
            self.differences.len()
        );
        if self.tolerance > TOLERANCE {
            sentence = format!(
                "{sentence}; of a quantized model up to {} of a tensor's largest number is rounding",
                self.tolerance
            );
        }
        for (what, names) in [("not shown", &self.missing), ("not known", &self.unknown)] {
            if !names.is_empty() {
                sentence = format!("{sentence}; {what}: {}", names.join(", "));
            }
        }
        sentence
    }
}
