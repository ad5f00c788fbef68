//! Which devices support a [`Precision`], and are fast in it.

use burn::tensor::{DType, Device};

use crate::{Isa, Precision, is_flex};

impl Precision {
    /// Returns whether this precision is at least as fast as f32 on `device`. On a CPU, bf16 needs
    /// AVX-512 BF16 instructions; without them it gives nearly the same values at the speed of
    /// f32.
    pub fn is_fast(self, device: &Device) -> bool {
        self == Self::F32 || !is_flex(device) || Isa::current() == Isa::Avx512Bf16
    }

    /// Returns whether `device` supports products in this precision.
    pub fn is_supported(self, device: &Device) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => is_flex(device) || device.supports_dtype(DType::BF16),
        }
    }
}
