//! The formats of quantized blocks.

/// Width of quantized integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 8 bits: 8.5 bits per weight including scales.
    Int8,
    /// 4 bits: 4.5 bits per weight including scales, 5 with minimums.
    Int4,
}

/// How the 32 values of a block follow from their integers. Scales and minimums have 16 bits.
///
/// ```
/// use nextword_kernels::{Bits, BlockFormat};
///
/// assert_eq!(BlockFormat::Q4_1.bits(), Bits::Int4);
/// assert!(BlockFormat::Q4_1.has_minimum());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "GGUF's names")]
pub enum BlockFormat {
    /// `scale * q` for `q` from -127 to 127 and a bf16 scale: files of earlier versions, and weights
    /// beyond the range of f16.
    Symmetric8,
    /// `scale * q` for `q` from -7 to 7 and a bf16 scale: files of earlier versions, and weights beyond
    /// the range of f16.
    Symmetric4,
    /// `scale * q` for `q` from -128 to 127 and an f16 scale.
    Q8_0,
    /// `scale * (q - 8)` for `q` from 0 to 15 and an f16 scale.
    Q4_0,
    /// `scale * q + minimum` for `q` from 0 to 15, with f16 scale and minimum.
    Q4_1,
}

impl BlockFormat {
    /// Width of the integers.
    pub fn bits(self) -> Bits {
        match self {
            Self::Symmetric8 | Self::Q8_0 => Bits::Int8,
            Self::Symmetric4 | Self::Q4_0 | Self::Q4_1 => Bits::Int4,
        }
    }

    /// Whether a block has a minimum besides its scale.
    pub fn has_minimum(self) -> bool {
        self == Self::Q4_1
    }

    /// Whether scales are f16, as in GGUF, and not bf16.
    pub fn has_f16_scales(self) -> bool {
        !self.is_symmetric()
    }

    /// Whether the smallest integer, -128 or -8, does not occur.
    pub(crate) fn is_symmetric(self) -> bool {
        matches!(self, Self::Symmetric8 | Self::Symmetric4)
    }

    /// Returns what is subtracted from the unsigned integers in memory. They are unsigned because int8
    /// dot products take one unsigned operand.
    pub(crate) fn offset(self) -> i32 {
        match self {
            Self::Symmetric8 | Self::Q8_0 => 128,
            Self::Symmetric4 | Self::Q4_0 => 8,
            Self::Q4_1 => 0,
        }
    }

    /// Returns the largest integer of a format without minimum.
    pub(crate) fn max(self) -> i32 {
        match self.bits() {
            Bits::Int8 => 127,
            Bits::Int4 => 7,
        }
    }

    /// Returns the f32 value of a scale or minimum.
    #[inline(always)]
    pub(crate) fn to_f32(self, bits: u16) -> f32 {
        if self.has_f16_scales() {
            f16_to_f32(bits)
        } else {
            f32::from_bits(u32::from(bits) << 16)
        }
    }
}

/// Returns the value of an f16. Branch-free, so that loops vectorize.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // Moves the exponent to its place; the product corrects its bias, also for subnormal numbers.
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
    let special = 0x7f80_0000 | magnitude << 13;
    let value = if magnitude < 0x7c00 { finite } else { special };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_has_its_value() {
        for bits in 0..=u16::MAX {
            let (got, want) = (
                f16_to_f32(bits),
                burn::tensor::f16::from_bits(bits).to_f32(),
            );
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{bits:#x}: {got} instead of {want}"
            );
        }
    }
}
