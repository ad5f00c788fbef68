//! Matrices of GGUF files: what was read is written again bit for bit.
//!
//! A file stores the columns one after the other, and of a column the blocks along k ([`gguf_blocks`](super::gguf_blocks)).

use super::gguf_blocks::{decode, encode};
use super::{BlockFormat, PANEL, QuantMatrix};

impl QuantMatrix {
    /// Creates a matrix of `k` rows and `n` columns from the blocks of a GGUF file. Returns `None` if GGUF
    /// does not have the format, `k` is not a multiple of the block length, or the number of bytes does not match.
    pub(crate) fn from_gguf(
        (k, n): (usize, usize),
        format: BlockFormat,
        bytes: &[u8],
    ) -> Option<Self> {
        let column_bytes = format.gguf_bytes(k)?;
        if n.checked_mul(column_bytes)? != bytes.len() {
            return None;
        }
        let parts = format.blocks_per_scale();
        let block_bytes = format.gguf_block_bytes()?;
        Some(Self::build((k, n), format, &|panel, first| {
            for c in 0..PANEL.min(n - first) {
                let column = &bytes[(first + c) * column_bytes..][..column_bytes];
                for (index, block) in column.chunks_exact(block_bytes).enumerate() {
                    for part in 0..parts {
                        panel.set(index * parts + part, c, &decode(format, block, part));
                    }
                }
            }
        }))
    }

    /// Returns the blocks as a GGUF file stores them, or `None` if it cannot.
    pub(crate) fn to_gguf(&self) -> Option<Vec<u8>> {
        let column_bytes = self.format.gguf_bytes(self.k)?;
        let parts = self.format.blocks_per_scale();
        let mut bytes = Vec::with_capacity(self.n * column_bytes);
        let mut block = Vec::with_capacity(parts);
        for n in 0..self.n {
            for first in (0..self.blocks()).step_by(parts) {
                block.clear();
                block.extend((first..first + parts).map(|b| self.column_block(n, b)));
                encode(self.format, &block, &mut bytes);
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cpu::testing::Rng;

    /// Random blocks of each type, with the values of the Python package `gguf`.
    const FIXTURE: &[u8] = include_bytes!("../../../../../../tests/fixtures/gguf_blocks.bin");

    fn formats() -> impl Iterator<Item = BlockFormat> {
        let formats = BlockFormat::ALL.into_iter();
        formats.filter(|format| format.has_f16_scales())
    }

    /// The blocks of each format, and the bits of their values.
    fn fixture() -> Vec<(BlockFormat, &'static [u8], Vec<u32>)> {
        let mut rest = FIXTURE;
        let mut take = |len: usize| {
            let (first, others) = rest.split_at(len);
            rest = others;
            first
        };
        let floats = [("F32", 4), ("F16", 2), ("BF16", 2)];
        let mut found = Vec::new();
        while found.len() < formats().count() {
            let name = str::from_utf8(take(8)).unwrap().trim_end_matches('\0');
            let count = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            if let Some((_, bytes)) = floats.iter().find(|(other, _)| *other == name) {
                take(count * (bytes + 4));
                continue;
            }
            let format = formats().find(|format| format.name() == name).unwrap();
            let blocks = take(count * format.gguf_block_bytes().unwrap());
            let values = take(4 * count * format.block_len()).as_chunks().0;
            let values = values.iter().map(|word| u32::from_le_bytes(*word));
            found.push((format, blocks, values.collect()));
        }
        found
    }

    #[test]
    fn blocks_have_the_values_of_the_python_package() {
        for (format, blocks, values) in fixture() {
            let len = format.block_len();
            let count = values.len() / len;
            // All blocks below each other, beside each other, and both.
            for (k, n) in [(count * len, 1), (len, count), (4 * len, count / 4)] {
                let matrix = QuantMatrix::from_gguf((k, n), format, blocks).unwrap();
                assert_eq!(matrix.to_gguf().unwrap(), blocks, "{format:?}: {k} by {n}");
                let mut column = vec![0.0; k];
                for j in 0..n {
                    matrix.dequantize_column(j, &mut column);
                    for i in 0..k {
                        let want = values[j * k + i];
                        let found = [matrix.value(i, j), column[i]].map(f32::to_bits);
                        assert_eq!(found, [want; 2], "{format:?} at {i}, {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn random_blocks_are_written_bit_for_bit() {
        let mut rng = Rng(41);
        for case in 0..30 {
            for format in formats() {
                let (k, n) = (format.block_len() * rng.below(4), rng.below(40));
                let size = n * format.gguf_bytes(k).unwrap();
                let bytes: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
                let matrix = QuantMatrix::from_gguf((k, n), format, &bytes).unwrap();
                assert_eq!(matrix.to_gguf(), Some(bytes), "case {case}: {format:?}");
            }
        }
    }

    #[test]
    fn other_lengths_and_formats_are_rejected() {
        for format in formats() {
            let k = 2 * format.block_len();
            let bytes = vec![0; 3 * format.gguf_bytes(k).unwrap()];
            assert!(QuantMatrix::from_gguf((k, 3), format, &bytes).is_some());
            assert!(QuantMatrix::from_gguf((k, 3), format, &bytes[1..]).is_none());
            assert!(QuantMatrix::from_gguf((k, 2), format, &bytes).is_none());
            assert!(QuantMatrix::from_gguf((k + 6, 3), format, &bytes).is_none());
            assert!(QuantMatrix::from_gguf((k + k / 4, 3), format, &bytes).is_none());
            assert!(QuantMatrix::from_gguf((k, usize::MAX), format, &bytes).is_none());
        }
        assert!(QuantMatrix::from_gguf((32, 1), BlockFormat::Symmetric8, &[0; 34]).is_none());
    }
}
