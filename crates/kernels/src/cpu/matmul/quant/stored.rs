//! The layout of quantized matrices in files.
//!
//! Integers, scales and minimums are stored column by column. An 8-bit integer is a signed byte. 4-bit
//! integers are unsigned (8 is added in formats without minimum) and take half a byte, the first of two
//! in the low half; an odd column ends with the padding 8. Scales and minimums are bf16 or f16 in
//! little-endian order.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{BLOCK, Bits, BlockFormat, Line, PANEL, QuantMatrix};

/// Turns signed bytes into unsigned ones with 128 added, and back.
const SIGN_BITS: u32 = 0x8080_8080;

impl Bits {
    /// Returns the number of bytes of `k` integers of a column in a file.
    pub(crate) fn stored_bytes(self, k: usize) -> usize {
        match self {
            Self::Int8 => k,
            Self::Int4 => k.div_ceil(2),
        }
    }

    /// Returns the byte of zeros in a file.
    fn stored_zero(self) -> u8 {
        match self {
            Self::Int8 => 0,
            Self::Int4 => 0x88,
        }
    }
}

/// A matrix in a file.
#[derive(Clone, Copy)]
pub(crate) struct StoredMatrix<'a> {
    pub(crate) integers: &'a [u8],
    pub(crate) scales: &'a [u8],
    /// Empty if the format has none.
    pub(crate) minimums: &'a [u8],
}

impl QuantMatrix {
    /// Creates a matrix from its bytes in a file, or `None` if a symmetric format contains -128 or, with
    /// 4 bits, -8, which are never written, or if the integers of the format are not stored apart.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub(crate) fn from_stored(
        (k, n): (usize, usize),
        format: BlockFormat,
        stored: &StoredMatrix<'_>,
    ) -> Option<Self> {
        let bits = format.separate_integers()?;
        let (blocks, column_bytes) = (k.div_ceil(BLOCK), bits.stored_bytes(k));
        let minimum_bytes = if format.has_minimum() { 2 * blocks } else { 0 };
        assert_eq!(n.checked_mul(column_bytes), Some(stored.integers.len()));
        assert_eq!(n.checked_mul(2 * blocks), Some(stored.scales.len()));
        assert_eq!(n.checked_mul(minimum_bytes), Some(stored.minimums.len()));
        let is_valid = AtomicBool::new(true);
        let matrix = Self::build((k, n), format, &|panel, first| {
            for c in 0..PANEL.min(n - first) {
                let j = first + c;
                let halves = |bytes: &[u8], into: &mut [[u16; PANEL]]| {
                    let column = &bytes[j * 2 * blocks..][..2 * blocks];
                    for (into, stored) in into.iter_mut().zip(column.as_chunks().0) {
                        into[c] = u16::from_le_bytes(*stored);
                    }
                };
                halves(stored.scales, panel.scales);
                if format.has_minimum() {
                    halves(stored.minimums, panel.minimums);
                }
                let column = &stored.integers[j * column_bytes..][..column_bytes];
                if !fill_column((format, bits), k, c, column, panel.lines) {
                    is_valid.store(false, Ordering::Relaxed);
                }
            }
        });
        is_valid.into_inner().then_some(matrix)
    }

    /// Returns the integers as they are stored in a file; empty if they are not stored apart.
    pub(crate) fn stored_integers(&self) -> Vec<u8> {
        let Some(bits) = self.format.separate_integers() else {
            return Vec::new();
        };
        let column_bytes = bits.stored_bytes(self.k);
        let mut stored = Vec::with_capacity(self.n * column_bytes + BLOCK);
        for j in 0..self.n {
            for b in 0..self.blocks() {
                for line in self.block(j / PANEL, b).lines {
                    let word = line.word(j % PANEL);
                    let word = match bits {
                        Bits::Int8 => word ^ SIGN_BITS,
                        Bits::Int4 => even_nibbles(word) | even_nibbles(word >> 4) << 16,
                    };
                    stored.extend(word.to_le_bytes());
                }
            }
            stored.truncate((j + 1) * column_bytes); // A partial block is padded.
        }
        stored
    }

    /// Returns the scales as they are stored in a file; empty if the integers are not stored apart.
    pub(crate) fn stored_scales(&self) -> Vec<u8> {
        self.stored_halves(&self.scales)
    }

    /// Returns the minimums as they are stored in a file; empty if the format has none or the integers are not stored apart.
    pub(crate) fn stored_minimums(&self) -> Vec<u8> {
        self.stored_halves(&self.minimums)
    }

    fn stored_halves(&self, halves: &[[u16; PANEL]]) -> Vec<u8> {
        if halves.is_empty() || self.format.separate_integers().is_none() {
            return Vec::new(); // Other formats have one scale for several blocks.
        }
        let blocks = self.blocks();
        let column = |j: usize| {
            (0..blocks).flat_map(move |b| halves[j / PANEL * blocks + b][j % PANEL].to_le_bytes())
        };
        (0..self.n).flat_map(column).collect()
    }
}

impl Line {
    /// Returns the four bytes of column `c` of a panel.
    fn word(&self, c: usize) -> u32 {
        self.0
            .as_chunks()
            .0
            .get(c)
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    fn set_word(&mut self, c: usize, word: u32) {
        if let Some(bytes) = self.0.as_chunks_mut().0.get_mut(c) {
            *bytes = word.to_le_bytes();
        }
    }
}

/// Fills column `c` of a panel with `k` stored integers. Returns whether all are valid.
fn fill_column(
    (format, bits): (BlockFormat, Bits),
    k: usize,
    c: usize,
    stored: &[u8],
    lines: &mut [Line],
) -> bool {
    let mut has_smallest = false;
    let block_bytes = bits.stored_bytes(BLOCK);
    let blocks = lines.chunks_exact_mut(format.lines());
    let last = k.div_ceil(BLOCK).saturating_sub(1);
    let has_spare_nibble = bits == Bits::Int4 && !k.is_multiple_of(2);
    for (index, (lines, block)) in blocks.zip(stored.chunks(block_bytes)).enumerate() {
        let mut padded = [bits.stored_zero(); BLOCK];
        let is_last_odd = index == last && has_spare_nibble;
        let block = if block.len() == block_bytes && !is_last_odd {
            block
        } else {
            padded[..block.len()].copy_from_slice(block);
            if is_last_odd {
                let last = &mut padded[block.len() - 1];
                *last = (*last & 15) | 0x80; // Whatever a file has as padding.
            }
            &padded[..block_bytes]
        };
        for (line, word) in lines.iter_mut().zip(block.as_chunks().0) {
            let word = u32::from_le_bytes(*word);
            let word = match bits {
                Bits::Int8 => {
                    let word = word ^ SIGN_BITS;
                    has_smallest |= has_zero(word, 0x0101_0101, SIGN_BITS);
                    word
                }
                Bits::Int4 => {
                    has_smallest |= has_zero(word, 0x1111_1111, 0x8888_8888);
                    spread_nibbles(word) | spread_nibbles(word >> 16) << 4
                }
            };
            line.set_word(c, word);
        }
    }
    !has_smallest || format.has_f16_scales()
}

/// Returns whether one of the parts of `word` is zero. `low_bits` and `high_bits` have the lowest and
/// the highest bit of each part.
fn has_zero(word: u32, low_bits: u32, high_bits: u32) -> bool {
    word.wrapping_sub(low_bits) & !word & high_bits != 0
}

/// Puts the four nibbles of the low half of `word` into the low nibbles of four bytes.
fn spread_nibbles(word: u32) -> u32 {
    let word = word & 0xffff;
    let word = (word | word << 8) & 0x00ff_00ff;
    (word | word << 4) & 0x0f0f_0f0f
}

/// Collects the low nibbles of the four bytes of `word`, the inverse of [`spread_nibbles`].
fn even_nibbles(word: u32) -> u32 {
    let word = word & 0x0f0f_0f0f;
    let word = (word | word >> 4) & 0x00ff_00ff;
    (word | word >> 8) & 0xffff
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cpu::matmul::matrix::MatRef;
    use crate::cpu::testing::Rng;

    const FORMATS: [BlockFormat; 5] = [
        BlockFormat::Symmetric8,
        BlockFormat::Symmetric4,
        BlockFormat::Q8_0,
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
    ];

    /// The integers as the documentation of the format describes them, one value at a time.
    fn naive_integers(w: &QuantMatrix) -> Vec<u8> {
        let mut stored = Vec::new();
        for j in 0..w.n {
            let value = |k: usize| match w.format {
                BlockFormat::Q4_1 if k < w.k => w.integer(k, j) - 8,
                _ if k < w.k => w.integer(k, j),
                _ => 0,
            };
            match w.format.separate_integers().unwrap() {
                Bits::Int8 => stored.extend((0..w.k).map(|k| value(k) as u8)),
                Bits::Int4 => stored.extend((0..w.k).step_by(2).map(|k| {
                    let [low, high] = [value(k), value(k + 1)].map(|v| (v + 8) as u8);
                    low | high << 4
                })),
            }
        }
        stored
    }

    #[test]
    fn stored_matrices_are_read_back_bit_for_bit() {
        let mut rng = Rng(35);
        for case in 0..60 {
            let (k, n) = (rng.below(140), rng.below(50));
            let values = rng.floats(k * n);
            for format in FORMATS {
                let w = QuantMatrix::quantize_as(MatRef::row_major(&values, k, n), format);
                let (integers, scales) = (w.stored_integers(), w.stored_scales());
                assert_eq!(
                    integers,
                    naive_integers(&w),
                    "case {case}: {k} by {n}, {format:?}"
                );
                let stored = StoredMatrix {
                    integers: &integers,
                    scales: &scales,
                    minimums: &w.stored_minimums(),
                };
                let back = QuantMatrix::from_stored((k, n), format, &stored);
                let back = back.unwrap_or_else(|| unreachable!("written by ourselves"));
                assert_eq!(back.stored_integers(), integers);
                assert_eq!(back.stored_scales(), scales);
                assert_eq!(back.stored_minimums(), stored.minimums);
                assert!(
                    back.lines
                        .iter()
                        .zip(w.lines.iter())
                        .all(|(a, b)| a.0 == b.0)
                );
            }
        }
    }

    #[test]
    fn matrices_whose_integers_are_not_stored_apart_have_no_stored_parts() {
        let block = [0; 144];
        let w = QuantMatrix::from_gguf((256, 1), BlockFormat::Q4_K, &block).unwrap();
        assert!(w.stored_integers().is_empty());
        assert!(w.stored_scales().is_empty() && w.stored_minimums().is_empty());
    }

    #[test]
    fn a_symmetric_format_rejects_the_smallest_integer_at_every_place() {
        let mut rng = Rng(36);
        for (k, n) in [(33, 17), (64, 3), (7, 1), (32, 16), (31, 2), (63, 1)] {
            let values = rng.floats(k * n);
            for format in FORMATS {
                let bits = format.separate_integers().unwrap();
                let w = QuantMatrix::quantize_as(MatRef::row_major(&values, k, n), format);
                let (valid, scales) = (w.stored_integers(), w.stored_scales());
                let minimums = w.stored_minimums();
                let column = bits.stored_bytes(k);
                for (at, valid_byte) in valid.iter().enumerate() {
                    let is_padded = bits == Bits::Int4 && k % 2 == 1 && at % column == column - 1;
                    let smallest: &[u8] = match bits {
                        Bits::Int8 => &[0x80],
                        Bits::Int4 => &[valid_byte & 0xf0, valid_byte & 0x0f],
                    };
                    for (half, byte) in smallest.iter().enumerate() {
                        let mut integers = valid.clone();
                        integers[at] = *byte;
                        let stored = StoredMatrix {
                            integers: &integers,
                            scales: &scales,
                            minimums: &minimums,
                        };
                        let read = QuantMatrix::from_stored((k, n), format, &stored);
                        let is_valid = format.has_f16_scales() || is_padded && half == 1;
                        assert_eq!(read.is_some(), is_valid, "{format:?} {k} by {n} at {at}");
                    }
                }
            }
        }
    }
}
