//! Panels as tiles read them: 8-bit integers as they are in memory, 4-bit integers as bytes, and scales as
//! f32.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::tile_x86::{TilePanel, to_f32};
use super::{Bits, BlockFormat, GROUPS, Line, PANEL, QuantMatrix};

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
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            TilePanel {
                lines,
                scales: widen(self.format, &self.scales[from..from + blocks], scales),
                minimums: match self.minimums.get(from..from + blocks) {
                    Some(halves) => widen(self.format, halves, minimums),
                    None => &[],
                },
            }
        })
    }
}

/// Spreads nibbles over bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack(packed: &[[Line; GROUPS / 2]], unpacked: &mut [[Line; GROUPS]]) {
    let mask = _mm512_set1_epi8(15);
    for (packed, unpacked) in packed.iter().zip(unpacked) {
        for (line, pair) in packed.iter().zip(unpacked.as_chunks_mut::<2>().0) {
            // SAFETY: a line has 64 bytes and their alignment.
            unsafe {
                let bytes = _mm512_load_si512(line.0.as_ptr().cast());
                let low = _mm512_and_si512(bytes, mask);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
                _mm512_store_si512(pair[0].0.as_mut_ptr().cast(), low);
                _mm512_store_si512(pair[1].0.as_mut_ptr().cast(), high);
            }
        }
    }
}

/// Converts scales or minimums to f32, in `words`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen<'a>(
    format: BlockFormat,
    halves: &[[u16; PANEL]],
    words: &'a mut [u32],
) -> &'a [[f32; PANEL]] {
    let values = as_rows(words);
    for (values, halves) in values.iter_mut().zip(halves) {
        // SAFETY: the array has sixteen values.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), to_f32(format, halves)) };
    }
    values
}

/// Reinterprets scratch as blocks of lines.
#[allow(clippy::cast_ptr_alignment, reason = "the alignment is checked")]
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
