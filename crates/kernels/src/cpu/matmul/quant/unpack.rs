//! Panels as tiles read them: 8-bit integers as they are in memory, others as bytes, and the scales of all sub-blocks
//! as f32.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::packing::unpack_registers;
use super::tile_x86::{TilePanel, minimums, scales};
use super::{Block, GROUPS, Line, PANEL, QuantMatrix};

impl QuantMatrix {
    /// Returns the number of scratch words for an unpacked panel.
    pub(super) fn unpacked_words(&self) -> usize {
        let halves = if self.format.has_minimum() { 2 } else { 1 };
        let lines = if self.format.bits() == 8 { 0 } else { GROUPS };
        self.blocks() * PANEL * (halves * self.format.sub_blocks() + lines)
    }

    /// Unpacks `P` panels from `first` on. Panels that the matrix does not have are not allowed.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn unpack_panels<'a, const P: usize>(
        &'a self,
        first: usize,
        words: &'a mut [u32],
    ) -> [TilePanel<'a>; P] {
        let (blocks, format) = (self.blocks(), self.format);
        let mut chunks = words.chunks_exact_mut(self.unpacked_words().max(1));
        std::array::from_fn(|p| {
            let words = chunks.next().unwrap_or_default();
            let (panel, count) = (first + p, format.lines());
            let packed = &self.lines[panel * blocks * count..][..blocks * count];
            let (lines, values): (&[[Line; GROUPS]], _) = if format.bits() == 8 {
                (packed.as_chunks().0, words)
            } else {
                let (line_words, values) = words.split_at_mut(blocks * GROUPS * PANEL);
                let unpacked = as_blocks(line_words);
                match (count, format.has_table()) {
                    (2, _) => unpack::<2, false>(packed, unpacked),
                    (3, _) => unpack::<3, false>(packed, unpacked),
                    (5, _) => unpack::<5, false>(packed, unpacked),
                    (6, _) => unpack::<6, false>(packed, unpacked),
                    (_, false) => unpack::<4, false>(packed, unpacked),
                    (_, true) => unpack::<4, true>(packed, unpacked),
                }
                (unpacked, values)
            };
            let (scale_words, minimum_words) =
                values.split_at_mut(blocks * format.sub_blocks() * PANEL);
            let minimum_words = if format.has_minimum() {
                minimum_words
            } else {
                &mut []
            };
            let (to_scales, to_minimums) = (as_rows(scale_words), as_rows(minimum_words));
            for b in 0..blocks {
                widen(&self.block(panel, b), b, to_scales, to_minimums);
            }
            TilePanel {
                lines,
                scales: to_scales,
                minimums: to_minimums,
            }
        })
    }
}

/// Spreads integers of `BITS` bits over bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack<const BITS: usize, const TABLE: bool>(packed: &[Line], unpacked: &mut [[Line; GROUPS]]) {
    for (packed, unpacked) in packed.as_chunks::<BITS>().0.iter().zip(unpacked) {
        let groups = unpack_registers::<BITS, TABLE>(packed);
        for (line, group) in unpacked.iter_mut().zip(groups) {
            // SAFETY: a line has 64 bytes and their alignment.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), group) };
        }
    }
}

/// Converts scales and minimums of block `b` to f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widen(
    block: &Block<'_>,
    b: usize,
    to_scales: &mut [[f32; PANEL]],
    to_minimums: &mut [[f32; PANEL]],
) {
    let sub_blocks = block.format.sub_blocks();
    for s in 0..sub_blocks {
        let at = b * sub_blocks + s;
        // SAFETY: the arrays have sixteen values.
        unsafe { _mm512_storeu_ps(to_scales[at].as_mut_ptr(), scales(block, s)) };
        if let (Some(minimums), Some(to)) = (minimums(block, s), to_minimums.get_mut(at)) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), minimums) };
        }
    }
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
