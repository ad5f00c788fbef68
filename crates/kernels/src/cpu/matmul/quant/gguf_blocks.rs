//! Where a block of a GGUF file has its integers, scales and factors.

use super::{BLOCK, BlockFormat, ColumnBlock, MAX_FACTORS};

/// The sign of an f16.
const SIGN: u16 = 0x8000;
/// Added to signed bytes to make them unsigned.
const SIGN_BIT: u8 = 0x80;

/// Where 32 integers, or some of their bits, are in a block.
#[derive(Clone, Copy)]
enum BitField {
    /// In 32 bytes from `first` on, from bit `shift` on.
    Bytes { first: usize, shift: usize },
    /// In 16 bytes, the first 16 in the low halves.
    Halves { first: usize },
    /// One bit each, in 4 bytes.
    Bits { first: usize },
}

impl BitField {
    /// Adds the bits in `mask`, shifted left by `left`, to the integers.
    #[inline(always)]
    fn read(self, bytes: &[u8], mask: u8, left: usize, integers: &mut [u8; BLOCK]) {
        let integers = integers.iter_mut().enumerate();
        match self {
            Self::Bytes { first, shift } => {
                let bytes = &bytes[first..first + BLOCK];
                integers.for_each(|(i, to)| *to |= (bytes[i] >> shift & mask) << left);
            }
            Self::Halves { first } => {
                let bytes = &bytes[first..first + BLOCK / 2];
                integers.for_each(|(i, to)| *to |= (bytes[i % 16] >> (i / 16 * 4) & mask) << left);
            }
            Self::Bits { first } => {
                let bytes = &bytes[first..first + BLOCK / 8];
                integers.for_each(|(i, to)| *to |= (bytes[i / 8] >> (i % 8) & mask) << left);
            }
        }
    }

    /// Adds the bits in `mask` of the integers, shifted right by `right`, to the block: the inverse of
    /// [`read`](Self::read).
    fn write(self, bytes: &mut [u8], mask: u8, right: usize, integers: &[u8; BLOCK]) {
        for (i, integer) in integers.iter().enumerate() {
            let (at, left) = match self {
                Self::Bytes { first, shift } => (first + i, shift),
                Self::Halves { first } => (first + i % 16, i / 16 * 4),
                Self::Bits { first } => (first + i / 8, i % 8),
            };
            bytes[at] |= (integer >> right & mask) << left;
        }
    }
}

impl BlockFormat {
    /// Returns the size of a block in a GGUF file, or `None` if GGUF does not have the format.
    pub(crate) fn gguf_block_bytes(self) -> Option<usize> {
        Some(match self {
            Self::Symmetric8 | Self::Symmetric4 => return None,
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        })
    }

    /// Returns the size of the `d_in` values of an output column in a GGUF file. `None` if GGUF does not have the
    /// format, or if `d_in` is not a multiple of [`block_len`](Self::block_len).
    ///
    /// ```
    /// use nextword_kernels::BlockFormat;
    ///
    /// assert_eq!(BlockFormat::Q4_K.gguf_bytes(512), Some(288)); // 4.5 bits per value
    /// assert_eq!(BlockFormat::Q4_K.gguf_bytes(96), None);
    /// ```
    pub fn gguf_bytes(self, d_in: usize) -> Option<usize> {
        let bytes = (d_in / self.block_len()).checked_mul(self.gguf_block_bytes()?);
        bytes.filter(|_| d_in.is_multiple_of(self.block_len()))
    }

    /// Returns the positions of scale and minimum.
    pub(super) fn halves(self) -> (usize, Option<usize>) {
        match self {
            Self::Q6_K => (208, None),
            Self::Q3_K => (108, None),
            Self::Q2_K => (80, Some(82)),
            _ => (0, self.has_minimum().then_some(2)),
        }
    }

    /// Returns where the low and the high bits of the integers of part `b` are, and the number of low bits.
    fn bit_fields(self, b: usize) -> (BitField, Option<BitField>, usize) {
        let halves = |first| BitField::Halves { first };
        let bytes = |first, shift| BitField::Bytes { first, shift };
        // 64 values in 32 bytes.
        let nibbles = |first| bytes(first + 32 * (b / 2), 4 * (b % 2));
        // 128 values in 32 bytes.
        let pairs = |first| bytes(first + 32 * (b / 4), 2 * (b % 4));
        match self {
            Self::Symmetric8 | Self::Q8_0 => (bytes(2, 0), None, 8),
            Self::Symmetric4 | Self::Q4_0 | Self::IQ4_NL => (halves(2), None, 4),
            Self::Q4_1 => (halves(4), None, 4),
            Self::Q5_0 => (halves(6), Some(BitField::Bits { first: 2 }), 4),
            Self::Q5_1 => (halves(8), Some(BitField::Bits { first: 4 }), 4),
            Self::Q2_K => (pairs(16), None, 2),
            Self::Q3_K => (pairs(32), Some(bytes(0, b)), 2),
            Self::Q4_K => (nibbles(16), None, 4),
            Self::Q5_K => (nibbles(48), Some(bytes(16, b)), 4),
            // Values 0 to 63 of 128 are in the low halves of 64 bytes.
            Self::Q6_K => {
                let low = bytes(64 * (b / 4) + 32 * (b % 2), b % 4 / 2 * 4);
                (low, Some(pairs(128)), 4)
            }
            Self::IQ4_XS => (halves(8 + 16 * b), None, 4),
        }
    }

    /// Returns the factors of scale and minimum of a sub-block, counted over the whole block.
    fn factors(self, bytes: &[u8], at: usize) -> [i8; 2] {
        let minus_32 = |low: u8, high: u8| ((low & 15) | (high & 3) << 4) as i8 - 32;
        match self {
            Self::Q4_K | Self::Q5_K => {
                let packed = &bytes[4..16];
                if at < 4 {
                    return [packed[at], packed[4 + at]].map(|v| (v & 63) as i8);
                }
                let (low, high) = (packed[4 + at], [packed[at - 4], packed[at]]);
                let [scale, minimum] = high.map(|v| v >> 2 & 0x30);
                [(low & 15 | scale) as i8, (low >> 4 | minimum) as i8]
            }
            Self::Q6_K => [bytes[192 + at].cast_signed(), 0],
            Self::Q3_K => {
                let packed = &bytes[96..108];
                let low = packed[at % 8] >> (4 * (at / 8));
                [minus_32(low, packed[8 + at % 4] >> (2 * (at / 4))), 0]
            }
            Self::Q2_K => [(bytes[at] & 15) as i8, (bytes[at] >> 4) as i8],
            Self::IQ4_XS => {
                let low = bytes[4 + at / 2] >> (4 * (at % 2));
                [minus_32(low, bytes[2 + at / 4] >> (2 * (at % 4))), 0]
            }
            _ => [1, 1],
        }
    }

    /// Adds the factors of a sub-block: the inverse of [`factors`](Self::factors).
    fn set_factors(self, bytes: &mut [u8], at: usize, [scale, minimum]: [u8; 2]) {
        match self {
            Self::Q4_K | Self::Q5_K => {
                let packed = &mut bytes[4..16];
                if at < 4 {
                    packed[at] |= scale;
                    packed[4 + at] |= minimum;
                } else {
                    packed[4 + at] |= scale & 15 | minimum << 4;
                    packed[at - 4] |= scale >> 4 << 6;
                    packed[at] |= minimum >> 4 << 6;
                }
            }
            Self::Q6_K => bytes[192 + at] = scale,
            Self::Q3_K => {
                let bits = scale.wrapping_add(32);
                bytes[96 + at % 8] |= (bits & 15) << (4 * (at / 8));
                bytes[104 + at % 4] |= (bits >> 4) << (2 * (at / 4));
            }
            Self::Q2_K => bytes[at] = scale | minimum << 4,
            Self::IQ4_XS => {
                let bits = scale.wrapping_add(32);
                bytes[4 + at / 2] |= (bits & 15) << (4 * (at % 2));
                bytes[2 + at / 4] |= (bits >> 4) << (2 * (at % 4));
            }
            _ => {}
        }
    }
}

/// Reads part `b` of a block: 32 values.
pub(super) fn decode(format: BlockFormat, bytes: &[u8], b: usize) -> ColumnBlock {
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let mut integers = [0; BLOCK];
    let (low, high, low_bits) = format.bit_fields(b);
    low.read(bytes, 0xff >> (8 - low_bits), 0, &mut integers);
    if let Some(high) = high {
        let mask = 0xff >> (8 - usize::from(format.bits()) + low_bits);
        high.read(bytes, mask, low_bits, &mut integers);
    }
    if format == BlockFormat::Q8_0 {
        integers = integers.map(|byte| byte ^ SIGN_BIT);
    }
    let (scale, minimum) = format.halves();
    let mut factors = [0; MAX_FACTORS];
    let sub_blocks = format.sub_blocks();
    if format.has_factors() {
        for s in 0..sub_blocks {
            let [scale, minimum] = format.factors(bytes, b * sub_blocks + s);
            (factors[s], factors[sub_blocks + s]) = (scale, minimum);
        }
    }
    ColumnBlock {
        integers,
        scale: half(scale),
        minimum: minimum.map_or(0, half) ^ subtracted(format),
        factors,
    }
}

/// Appends the block that consists of `parts`.
pub(super) fn encode(format: BlockFormat, parts: &[ColumnBlock], to: &mut Vec<u8>) {
    let start = to.len();
    to.resize(start + format.gguf_block_bytes().unwrap_or_default(), 0);
    let bytes = &mut to[start..];
    let (scale, minimum) = format.halves();
    let sub_blocks = format.sub_blocks();
    for (b, part) in parts.iter().enumerate() {
        bytes[scale..scale + 2].copy_from_slice(&part.scale.to_le_bytes());
        if let Some(at) = minimum {
            let minimum = part.minimum ^ subtracted(format);
            bytes[at..at + 2].copy_from_slice(&minimum.to_le_bytes());
        }
        let mut integers = part.integers;
        if format == BlockFormat::Q8_0 {
            integers = integers.map(|byte| byte ^ SIGN_BIT);
        }
        let (low, high, low_bits) = format.bit_fields(b);
        low.write(bytes, 0xff >> (8 - low_bits), 0, &integers);
        if let Some(high) = high {
            high.write(bytes, 0xff >> low_bits, low_bits, &integers);
        }
        if format.has_factors() {
            for s in 0..sub_blocks {
                let factors = [part.factors[s], part.factors[sub_blocks + s]];
                format.set_factors(bytes, b * sub_blocks + s, factors.map(i8::cast_unsigned));
            }
        }
    }
}

/// The sign that GGUF's minimums have changed: in blocks with factors, they are subtracted.
fn subtracted(format: BlockFormat) -> u16 {
    if format.has_factors() && format.has_minimum() {
        SIGN
    } else {
        0
    }
}
