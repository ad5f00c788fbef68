//! How far the model's numbers are from the recomputed ones.

use serde::Serialize;

use crate::array::Array;

/// What the independent recomputation in f64 found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The largest difference that counts as rounding, by what it is a part of.
    pub tolerance: Tolerance,
    /// For each tensor the largest difference.
    pub differences: Vec<Difference>,
    /// Tensors that the graph has and the forward pass did not show.
    pub missing: Vec<String>,
    /// Tensors that the forward pass showed and the graph does not have.
    pub unknown: Vec<String>,
}

/// What counts as rounding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerance {
    /// Of a tensor computed from the model's own operands: a part of the tensor's largest number plus
    /// a tenth.
    pub step: f64,
    /// Of a tensor computed from weights and token ids alone: a part of the tensor's largest number,
    /// or of 1 if that is more. `None` for quantized models, whose rounding a norm of small numbers
    /// may enlarge to any size.
    pub whole: Option<f64>,
}

impl Tolerance {
    /// Rounding of f32.
    pub(crate) const FLOATS: Self = Self {
        step: 3e-5,
        whole: Some(1e-4),
    };

    /// Quantized models round what goes into a product of few tokens to 16 bits.
    pub(crate) const QUANTIZED: Self = Self {
        step: 3e-4,
        whole: None,
    };
}

/// How far one tensor is from its recomputation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The tensor.
    pub name: String,
    /// How many numbers were compared.
    pub count: usize,
    /// The largest difference from what follows from weights and token ids alone; infinite if a
    /// number is masked on one side only.
    pub largest: f64,
    /// The same from what follows from the model's own operands.
    pub step: f64,
    /// The tensor's largest number.
    pub scale: f64,
}

impl Verdict {
    pub(crate) fn new(tolerance: Tolerance) -> Self {
        Self {
            tolerance,
            differences: Vec::new(),
            missing: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Compares `value` with what follows from weights and token ids alone, and with what follows
    /// from the model's own operands.
    pub(crate) fn compare(&mut self, name: &str, value: &Array, exact: &Array, step: &Array) {
        let numbers = exact.data.iter().filter(|x| x.is_finite());
        self.differences.push(Difference {
            name: name.to_string(),
            count: value.data.len(),
            largest: apart(value, exact),
            step: apart(value, step),
            scale: numbers.fold(0.0, |most, x| most.max(x.abs())),
        });
    }

    /// The tensor that is farthest off.
    pub fn worst(&self) -> Option<&Difference> {
        let all = self.differences.iter();
        all.max_by(|a, b| a.largest.total_cmp(&b.largest))
    }

    /// Whether every tensor is there and equals its recomputation but for rounding.
    pub fn is_verified(&self) -> bool {
        let Tolerance { step, whole } = self.tolerance;
        let close = |d: &Difference| {
            d.step <= step * (d.scale + 0.1)
                && whole.is_none_or(|whole| d.largest <= whole * d.scale.max(1.0))
        };
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
        if self.tolerance.whole.is_none() {
            let step = self.differences.iter().map(|d| d.step).fold(0.0, f64::max);
            sentence = format!(
                "{sentence}; {step:.1e} in a step by itself, which is what counts in a quantized model"
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

/// The largest difference; infinite if a number is masked on one side only.
fn apart(value: &Array, other: &Array) -> f64 {
    let pairs = value.data.iter().zip(&other.data);
    let apart = pairs.map(|(a, b)| match (a - b).abs() {
        _ if a.total_cmp(b).is_eq() => 0.0, // Masked on both sides, too.
        difference if difference.is_nan() => f64::INFINITY,
        difference => difference,
    });
    apart.fold(0.0, f64::max)
}
