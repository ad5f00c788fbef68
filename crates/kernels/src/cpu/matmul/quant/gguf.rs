//! The blocks of GGUF files: what was read is written again bit for bit.
//!
//! A file stores the columns one after the other, and of a column the blocks along k. A block begins
//! with its scale and, in `Q4_1`, its minimum (f16, little-endian). 8-bit integers follow in order; of
//! 4-bit integers, byte `i` contains values `i` (low half) and `i + 16`.

use super::{BLOCK, Bits, BlockFormat, ColumnBlock, PANEL, QuantMatrix};

/// Added to signed bytes to make them unsigned.
const SIGN_BIT: u8 = 0x80;

impl BlockFormat {
    /// Returns the size of a block in a GGUF file, or `None` if GGUF does not have the format.
    pub(crate) fn gguf_block_bytes(self) -> Option<usize> {
        match self {
            Self::Symmetric8 | Self::Symmetric4 => None,
            Self::Q8_0 => Some(2 + BLOCK),
            Self::Q4_0 => Some(2 + BLOCK / 2),
            Self::Q4_1 => Some(4 + BLOCK / 2),
        }
    }
}

impl QuantMatrix {
    /// Creates a matrix of `k` rows and `n` columns from the blocks of a GGUF file. Returns `None` if GGUF
    /// does not have the format, `k` is not a multiple of 32, or the number of bytes does not match.
    pub(crate) fn from_gguf(
        (k, n): (usize, usize),
        format: BlockFormat,
        bytes: &[u8],
    ) -> Option<Self> {
        let block_bytes = format.gguf_block_bytes()?;
        let column_bytes = (k / BLOCK).checked_mul(block_bytes)?;
        if !k.is_multiple_of(BLOCK) || n.checked_mul(column_bytes)? != bytes.len() {
            return None;
        }
        Some(Self::build((k, n), format, &|panel, first| {
            for c in 0..PANEL.min(n - first) {
                let column = &bytes[(first + c) * column_bytes..][..column_bytes];
                for (b, block) in column.chunks_exact(block_bytes).enumerate() {
                    panel.set(b, c, &decode(format, block));
                }
            }
        }))
    }

    /// Returns the blocks as a GGUF file stores them, or `None` if it cannot.
    pub(crate) fn to_gguf(&self) -> Option<Vec<u8>> {
        let block_bytes = self.format.gguf_block_bytes()?;
        if !self.k.is_multiple_of(BLOCK) {
            return None;
        }
        let mut bytes = Vec::with_capacity(self.n * self.blocks() * block_bytes);
        for n in 0..self.n {
            for b in 0..self.blocks() {
                encode(self.format, &self.column_block(n, b), &mut bytes);
            }
        }
        Some(bytes)
    }
}

fn decode(format: BlockFormat, bytes: &[u8]) -> ColumnBlock {
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let header = if format.has_minimum() { 4 } else { 2 };
    let mut integers = [0; BLOCK];
    match format.bits() {
        Bits::Int8 => {
            for (integer, byte) in integers.iter_mut().zip(&bytes[header..]) {
                *integer = byte ^ SIGN_BIT;
            }
        }
        Bits::Int4 => {
            for (i, byte) in bytes[header..].iter().enumerate() {
                integers[i] = byte & 15;
                integers[i + BLOCK / 2] = byte >> 4;
            }
        }
    }
    ColumnBlock {
        integers,
        scale: half(0),
        minimum: if format.has_minimum() { half(2) } else { 0 },
    }
}

fn encode(format: BlockFormat, block: &ColumnBlock, bytes: &mut Vec<u8>) {
    bytes.extend(block.scale.to_le_bytes());
    if format.has_minimum() {
        bytes.extend(block.minimum.to_le_bytes());
    }
    match format.bits() {
        Bits::Int8 => bytes.extend(block.integers.map(|integer| integer ^ SIGN_BIT)),
        Bits::Int4 => {
            let (low, high) = block.integers.split_at(BLOCK / 2);
            bytes.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Rng;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1];

    /// The value that the format's description gives, one at a time.
    fn naive_value(format: BlockFormat, block: &[u8], i: usize) -> f32 {
        let half = |at: usize| {
            burn::tensor::f16::from_bits(u16::from_le_bytes([block[at], block[at + 1]])).to_f32()
        };
        let nibble = |bytes: &[u8]| f32::from(bytes[i % 16] >> (4 * (i / 16)) & 15);
        match format {
            BlockFormat::Q8_0 => half(0) * f32::from(block[2 + i].cast_signed()),
            BlockFormat::Q4_0 => half(0) * (nibble(&block[2..]) - 8.0),
            _ => half(0) * nibble(&block[4..]) + half(2),
        }
    }

    #[test]
    fn random_blocks_have_the_values_of_gguf_and_are_written_bit_for_bit() {
        let mut rng = Rng(41);
        for case in 0..60 {
            let (k, n) = (32 * rng.below(5), rng.below(40));
            for format in FORMATS {
                let size = format.gguf_block_bytes().unwrap_or_default();
                let bytes: Vec<u8> = (0..k / 32 * n * size).map(|_| rng.next() as u8).collect();
                let matrix = QuantMatrix::from_gguf((k, n), format, &bytes);
                let matrix = matrix.unwrap_or_else(|| unreachable!("the lengths match"));
                assert_eq!(matrix.to_gguf().as_ref(), Some(&bytes), "case {case}");
                for (index, block) in bytes.chunks_exact(size).enumerate() {
                    let (column, first) = (index / (k / 32), index % (k / 32) * 32);
                    for i in 0..32 {
                        let got = matrix.value(first + i, column);
                        let want = naive_value(format, block, i);
                        assert!(
                            got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                            "{format:?}: {got} instead of {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn other_lengths_and_formats_are_rejected() {
        for format in FORMATS {
            let size = format.gguf_block_bytes().unwrap_or_default();
            let bytes = vec![0; 6 * size];
            assert!(QuantMatrix::from_gguf((64, 3), format, &bytes).is_some());
            assert!(QuantMatrix::from_gguf((64, 3), format, &bytes[1..]).is_none());
            assert!(QuantMatrix::from_gguf((64, 2), format, &bytes).is_none());
            assert!(QuantMatrix::from_gguf((70, 3), format, &bytes).is_none());
            assert!(QuantMatrix::from_gguf((64, usize::MAX), format, &bytes).is_none());
        }
        assert!(QuantMatrix::from_gguf((32, 1), BlockFormat::Symmetric8, &[0; 34]).is_none());
    }
}
