//! Plain types that select or configure an operation, shared by its implementations.

use serde::{Deserialize, Serialize};

/// An elementwise activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * Phi(x)`, exact (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2` (So et al. 2021, arXiv 2109.08668).
    ReluSquared,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Kind of normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `LayerNorm`: mean 0 and variance 1 (Ba et al. 2016, arXiv 1607.06450).
    Layer,
    /// `RMSNorm`: root mean square 1 (Zhang and Sennrich 2019, arXiv 1910.07467).
    Rms,
}

/// Hyperparameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator to avoid division by zero.
    pub eps: f64,
    /// Number of this update, starting at 1.
    pub step: u64,
    /// Factor applied to the gradient; below 1 when the global norm is clipped.
    pub gradient_scale: f64,
}

/// Arithmetic of matrix products. Sums are always accumulated in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 factors.
    #[default]
    F32,
    /// Factors rounded to bf16 (8 bits of significand), in the forward and the backward pass.
    Bf16,
}

impl Precision {
    /// Returns whether this is the default, f32.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// Longest sequence for which reading the weights dominates the cost of a product. The batch size is
/// ignored: on the CPU, a row's result must not depend on the rest of the batch, and the products of up to
/// this number of positions and of more positions sum in different orders.
pub const MATVEC_MAX_SEQ: usize = 8;
