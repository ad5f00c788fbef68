//! Matrices in files in the layout that they have in memory, so that a mapped file is used as it is.
//!
//! The layout is that of the [module](super): panels of sixteen columns, in each the blocks along k, in each the lines.
//! Scales and minimums are arrays `[panels, blocks, 16]`. Matrices that fill their last panel and block can be
//! stored so.

use bytes::Bytes;

use super::storage::Storage;
use super::{BLOCK, BlockFormat, PANEL, QuantMatrix};

/// The number of bytes in a line.
const LINE_BYTES: usize = 64;
/// The number of bytes of the scales of a block of a panel.
const HALVES_BYTES: usize = 2 * PANEL;

/// Lines, scales and minimums, which are empty if the format has none.
pub(crate) type PanelBytes<T> = [T; 3];

impl BlockFormat {
    /// Whether files contain a matrix `[k, n]` of this format in the layout of memory.
    pub(crate) fn has_panels(self, (k, n): (usize, usize)) -> bool {
        self.has_f16_scales()
            && self.separate_integers().is_some()
            && k.is_multiple_of(BLOCK)
            && n.is_multiple_of(PANEL)
            && k > 0
            && n > 0
    }
}

impl QuantMatrix {
    /// Creates a matrix from copies of `data`. Returns `None` if files do not contain such a matrix in this layout, or
    /// the numbers of bytes are others.
    pub(crate) fn copy_panels(
        shape: (usize, usize),
        format: BlockFormat,
        data: PanelBytes<&[u8]>,
    ) -> Option<Self> {
        check(shape, format, data.map(<[u8]>::len))?;
        let [lines, scales, minimums] = data;
        Some(Self::of_panels(
            shape,
            format,
            Storage::copy(lines),
            [scales, minimums].map(Storage::copy),
        ))
    }

    /// As [`copy_panels`](Self::copy_panels), but without copying bytes that are aligned.
    pub(crate) fn share_panels(
        shape: (usize, usize),
        format: BlockFormat,
        data: PanelBytes<Bytes>,
    ) -> Option<Self> {
        check(shape, format, data.each_ref().map(Bytes::len))?;
        let [lines, scales, minimums] = data;
        Some(Self::of_panels(
            shape,
            format,
            Storage::share(lines),
            [scales, minimums].map(Storage::share),
        ))
    }

    fn of_panels(
        (k, n): (usize, usize),
        format: BlockFormat,
        lines: Storage<super::Line>,
        [scales, minimums]: [Storage<[u16; PANEL]>; 2],
    ) -> Self {
        Self {
            k,
            n,
            format,
            lines,
            scales,
            minimums,
            factors: Vec::new(),
        }
    }

    /// The lines as in [`copy_panels`](Self::copy_panels).
    pub(crate) fn panel_lines(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.lines.len() * LINE_BYTES);
        for line in self.lines.iter() {
            bytes.extend_from_slice(&line.0);
        }
        bytes
    }

    /// The scales as in [`copy_panels`](Self::copy_panels).
    pub(crate) fn panel_scales(&self) -> Vec<u8> {
        halves(&self.scales)
    }

    /// The minimums as in [`copy_panels`](Self::copy_panels).
    pub(crate) fn panel_minimums(&self) -> Vec<u8> {
        halves(&self.minimums)
    }
}

fn halves(halves: &[[u16; PANEL]]) -> Vec<u8> {
    let bytes = halves.as_flattened().iter().map(|half| half.to_le_bytes());
    bytes.flatten().collect()
}

/// Returns whether a matrix of `shape` has these numbers of bytes.
fn check(shape: (usize, usize), format: BlockFormat, found: PanelBytes<usize>) -> Option<()> {
    if !format.has_panels(shape) {
        return None;
    }
    let total = (shape.0 / BLOCK).checked_mul(shape.1 / PANEL)?;
    let lines = total.checked_mul(format.lines() * LINE_BYTES)?;
    let minimums = if format.has_minimum() { total } else { 0 };
    (found == [lines, total * HALVES_BYTES, minimums * HALVES_BYTES]).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::matmul::matrix::MatRef;
    use crate::cpu::testing::Rng;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1];

    fn panels(matrix: &QuantMatrix) -> [Vec<u8>; 3] {
        [
            matrix.panel_lines(),
            matrix.panel_scales(),
            matrix.panel_minimums(),
        ]
    }

    fn matrix(rng: &mut Rng, (k, n): (usize, usize), format: BlockFormat) -> QuantMatrix {
        let values = rng.floats(k * n);
        QuantMatrix::quantize_as(MatRef::row_major(&values, k, n), format)
    }

    /// `data` with its first byte at a multiple of 64, plus `offset`.
    fn aligned(data: &[u8], offset: usize) -> Bytes {
        let mut bytes = vec![0; data.len() + 128];
        let start = bytes.as_ptr().align_offset(64) + offset;
        bytes[start..start + data.len()].copy_from_slice(data);
        Bytes::from(bytes).slice(start..start + data.len())
    }

    #[test]
    fn shared_and_copied_panels_are_the_matrix() {
        let mut rng = Rng(12);
        for format in FORMATS {
            let shape = (32 * (1 + rng.below(4)), 16 * (1 + rng.below(4)));
            let original = matrix(&mut rng, shape, format);
            let data = panels(&original);
            let copied = QuantMatrix::copy_panels(shape, format, data.each_ref().map(|v| &v[..]));
            let shared = |offset| {
                let data = data.each_ref().map(|v| aligned(v, offset));
                let lines = data[0].as_ptr();
                let matrix = QuantMatrix::share_panels(shape, format, data)?;
                let is_in_place = matrix.lines.as_ptr().cast() == lines;
                Some((matrix, is_in_place))
            };
            let (in_place, is_in_place) = shared(0).unwrap_or_else(|| unreachable!("it fits"));
            assert!(is_in_place);
            // Not aligned: copied.
            let (moved, is_in_place) = shared(8).unwrap_or_else(|| unreachable!("it fits"));
            assert!(!is_in_place);
            for other in [
                copied.unwrap_or_else(|| unreachable!("it fits")),
                in_place,
                moved,
            ] {
                assert_eq!(other.to_gguf(), original.to_gguf(), "{format:?}");
                assert_eq!(panels(&other), data);
            }
        }
    }

    #[test]
    fn other_lengths_shapes_and_formats_are_rejected() {
        let mut rng = Rng(13);
        for format in FORMATS {
            let data = panels(&matrix(&mut rng, (64, 32), format));
            let create = |shape, format, data: [&[u8]; 3]| {
                let shared = data.map(Bytes::copy_from_slice);
                let shared = QuantMatrix::share_panels(shape, format, shared).is_some();
                let copied = QuantMatrix::copy_panels(shape, format, data).is_some();
                assert_eq!(shared, copied);
                copied
            };
            let whole = data.each_ref().map(|v| &v[..]);
            assert!(create((64, 32), format, whole));
            for shape in [
                (64, 16),
                (32, 32),
                (64, 31),
                (63, 32),
                (0, 0),
                (usize::MAX - 31, 16),
            ] {
                assert!(!create(shape, format, whole), "{shape:?}");
            }
            for i in 0..3 {
                let mut short = whole;
                short[i] = short[i].get(1..).unwrap_or(&[0]);
                assert!(!create((64, 32), format, short), "{i}");
            }
            let other = FORMATS.iter().filter(|other| **other != format);
            let mut other = other
                .filter(|f| (f.bits(), f.has_minimum()) != (format.bits(), format.has_minimum()));
            assert!(other.all(|other| !create((64, 32), *other, whole)));
            assert!(!create((64, 32), BlockFormat::Symmetric8, whole));
        }
    }
}
