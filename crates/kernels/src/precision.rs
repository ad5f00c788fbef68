//! The arithmetic of matrix products.

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::Isa;

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

    /// Returns whether this precision is at least as fast as f32 on `device`. On a CPU, bf16 needs
    /// AVX-512 BF16 instructions; without them it gives nearly the same values at the speed of
    /// f32.
    pub fn is_fast(self, device: &Device) -> bool {
        self == Self::F32
            || !crate::QuantizedMatrix::has_native_kernel(device)
            || Isa::current() == Isa::Avx512Bf16
    }

    /// Returns whether `device` supports products in this precision.
    pub fn is_supported(self, device: &Device) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => {
                crate::QuantizedMatrix::has_native_kernel(device)
                    || device.supports_dtype(DType::BF16)
            }
        }
    }
}
