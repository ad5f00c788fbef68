//! The formats of quantized blocks.

use super::BLOCK;

/// Width of the integers that weights are quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 8 bits: 8.5 bits per weight including scales.
    Int8,
    /// 4 bits: 4.5 bits per weight including scales, 5 with minimums.
    Int4,
}

impl Bits {
    /// The width as a number: 8 or 4.
    ///
    /// ```
    /// assert_eq!(nextword_kernels::Bits::Int4.number(), 4);
    /// ```
    pub fn number(self) -> u8 {
        match self {
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }
}

/// How the values of a block follow from their integers: those of GGUF, and two of earlier versions.
///
/// Scales and minimums have 16 bits. In blocks of 32 values they are used as they are. Blocks of 256 values have a
/// small integer besides for each sub-block of 16 or 32 values, by which the scale (and the minimum) is multiplied.
///
/// ```
/// use nextword_kernels::BlockFormat;
///
/// assert_eq!((BlockFormat::Q4_K.bits(), BlockFormat::Q4_K.block_len()), (4, 256));
/// assert!(BlockFormat::Q4_1.has_minimum());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// `scale * (q - 16)` for `q` from 0 to 31 and an f16 scale.
    Q5_0,
    /// `scale * q + minimum` for `q` from 0 to 31, with f16 scale and minimum.
    Q5_1,
    /// `scale * s * q - minimum * m` for `q` from 0 to 3; `s` and `m` have 4 bits for 16 values.
    Q2_K,
    /// `scale * s * (q - 4)` for `q` from 0 to 7; `s` has 6 bits for 16 values, with a sign.
    Q3_K,
    /// `scale * s * q - minimum * m` for `q` from 0 to 15; `s` and `m` have 6 bits for 32 values.
    Q4_K,
    /// `scale * s * q - minimum * m` for `q` from 0 to 31; `s` and `m` have 6 bits for 32 values.
    Q5_K,
    /// `scale * s * (q - 32)` for `q` from 0 to 63; `s` has 8 bits for 16 values, with a sign.
    Q6_K,
    /// `scale * t[q]` for `q` from 0 to 15, a table `t` of 8-bit integers and an f16 scale.
    IQ4_NL,
    /// `scale * s * t[q]` as in [`IQ4_NL`](Self::IQ4_NL); `s` has 6 bits for 32 values, with a sign.
    IQ4_XS,
}

/// The integers that the 4 bits of `IQ4_NL` and `IQ4_XS` select, plus 128.
pub(crate) const NONLINEAR: [u8; 16] = [
    1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
];

impl BlockFormat {
    /// All formats.
    pub const ALL: [Self; 14] = [
        Self::Symmetric8,
        Self::Symmetric4,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// Width of the integers in bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::Symmetric8 | Self::Q8_0 => 8,
            Self::Q6_K => 6,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 5,
            Self::Symmetric4
            | Self::Q4_0
            | Self::Q4_1
            | Self::Q4_K
            | Self::IQ4_NL
            | Self::IQ4_XS => 4,
            Self::Q3_K => 3,
            Self::Q2_K => 2,
        }
    }

    /// Name in GGUF, or that of the formats of earlier versions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Symmetric8 => "symmetric 8-bit",
            Self::Symmetric4 => "symmetric 4-bit",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
        }
    }

    /// Values along `d_in` in a block of a file: 32 or 256.
    pub fn block_len(self) -> usize {
        self.blocks_per_scale() * BLOCK
    }

    /// Width of the integers, if model files store them apart from scales and minimums. The blocks of other
    /// formats are stored as GGUF has them.
    pub fn separate_integers(self) -> Option<Bits> {
        match self {
            Self::Symmetric8 | Self::Q8_0 => Some(Bits::Int8),
            Self::Symmetric4 | Self::Q4_0 | Self::Q4_1 => Some(Bits::Int4),
            _ => None,
        }
    }

    /// Whether a block has a minimum besides its scale.
    pub fn has_minimum(self) -> bool {
        matches!(
            self,
            Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K
        )
    }

    /// Whether scales are f16, as in GGUF. In formats with bf16 scales, the smallest integer, -128 or -8, does not occur.
    pub fn has_f16_scales(self) -> bool {
        !matches!(self, Self::Symmetric8 | Self::Symmetric4)
    }

    /// Whether each sub-block has integers by which scale and minimum are multiplied.
    pub(crate) fn has_factors(self) -> bool {
        self.blocks_per_scale() > 1
    }

    /// Whether integers select values of [`NONLINEAR`].
    pub(crate) fn has_table(self) -> bool {
        matches!(self, Self::IQ4_NL | Self::IQ4_XS)
    }

    /// Returns the number of blocks of 32 values that have the same scale and minimum.
    pub(crate) fn blocks_per_scale(self) -> usize {
        match self {
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 8,
            _ => 1,
        }
    }

    /// Returns the number of parts of 32 values whose scales differ.
    #[inline(always)]
    pub(crate) fn sub_blocks(self) -> usize {
        match self {
            Self::Q2_K | Self::Q3_K | Self::Q6_K => 2,
            _ => 1,
        }
    }

    /// Returns the number of rows of factors of 32 values: of each sub-block for the scale, then for the minimum.
    #[inline(always)]
    pub(crate) fn factor_rows(self) -> usize {
        match (self.has_factors(), self.has_minimum()) {
            (false, _) => 0,
            (true, false) => self.sub_blocks(),
            (true, true) => 2 * self.sub_blocks(),
        }
    }

    /// Returns the number of cache lines per block of a panel.
    #[inline(always)]
    pub(crate) fn lines(self) -> usize {
        usize::from(self.bits())
    }

    /// Returns what is subtracted from the unsigned integers in memory. They are unsigned because int8
    /// dot products take one unsigned operand. For formats with a table, these are its values.
    pub(crate) fn offset(self) -> i32 {
        match self {
            Self::Symmetric8 | Self::Q8_0 | Self::IQ4_NL | Self::IQ4_XS => 128,
            Self::Q6_K => 32,
            Self::Q5_0 => 16,
            Self::Symmetric4 | Self::Q4_0 => 8,
            Self::Q3_K => 4,
            Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K => 0,
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
