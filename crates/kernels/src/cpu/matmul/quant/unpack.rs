//! Panels as tiles read them: 8-bit integers as they are in memory, 4-bit integers as bytes, and scales as
//! f32.

use super::tile_x86::TilePanel;
use super::{Bits, GROUPS, Line, PANEL, QuantMatrix};

impl QuantMatrix {
    /// Returns the number of scratch words for an unpacked panel.
    pub(super) fn unpacked_words(&self) -> usize {
        let halves = if self.format.has_minimum() { 2 } else { 1 };
        let lines = match self.format.bits() {
            Bits::Int8 => 0,
            Bits::Int4 => GROUPS,
        };
        self.blocks() * PANEL * (halves + lines)
    }

    /// Unpacks `P` panels from `first` on. Panels that the matrix does not have are not allowed.
    pub(super) fn unpack_panels<'a, const P: usize>(
        &'a self,
        first: usize,
        words: &'a mut [u32],
    ) -> [TilePanel<'a>; P] {
        let blocks = self.blocks();
        let mut chunks = words.chunks_exact_mut(self.unpacked_words().max(1));
        std::array::from_fn(|p| {
            let words = chunks.next().unwrap_or_default();
            let from = (first + p) * blocks;
            let (line_words, halves) = match self.format.bits() {
                Bits::Int8 => words.split_at_mut(0),
                Bits::Int4 => words.split_at_mut(blocks * GROUPS * PANEL),
            };
            let lines: &[[Line; GROUPS]] = match self.format.bits() {
                Bits::Int8 => &self.lines.as_chunks().0[from..from + blocks],
                Bits::Int4 => {
                    let unpacked = as_blocks(line_words);
                    let packed: &[[Line; GROUPS / 2]] = self.lines.as_chunks().0;
                    unpack(&packed[from..from + blocks], unpacked);
                    unpacked
                }
            };
            let (scales, minimums) = halves.split_at_mut(blocks * PANEL);
            let to_f32 = |halves: &[[u16; PANEL]], words: &'a mut [u32]| -> &'a [[f32; PANEL]] {
                let values = as_rows(words);
                for (values, halves) in values.iter_mut().zip(halves) {
                    *values = halves.map(|bits| self.format.to_f32(bits));
                }
                values
            };
            TilePanel {
                lines,
                scales: to_f32(&self.scales[from..from + blocks], scales),
                minimums: match self.minimums.get(from..from + blocks) {
                    Some(halves) => to_f32(halves, minimums),
                    None => &[],
                },
            }
        })
    }
}

/// Spreads nibbles over bytes.
fn unpack(packed: &[[Line; GROUPS / 2]], unpacked: &mut [[Line; GROUPS]]) {
    for (packed, unpacked) in packed.iter().zip(unpacked) {
        for (line, pair) in packed.iter().zip(unpacked.as_chunks_mut::<2>().0) {
            pair[0].0 = line.0.map(|byte| byte & 15);
            pair[1].0 = line.0.map(|byte| byte >> 4);
        }
    }
}

/// Reinterprets scratch as blocks of lines.
fn as_blocks(words: &mut [u32]) -> &mut [[Line; GROUPS]] {
    if words.is_empty() {
        return &mut [];
    }
    assert!(words.as_ptr().cast::<Line>().is_aligned());
    let count = words.len() / (GROUPS * PANEL);
    // SAFETY: the words are enough and aligned, and all bit patterns are valid.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), count) }
}

/// Reinterprets scratch as rows of f32.
fn as_rows(words: &mut [u32]) -> &mut [[f32; PANEL]] {
    let count = words.len() / PANEL;
    // SAFETY: the words are enough and aligned, and all bit patterns are valid.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), count) }
}
