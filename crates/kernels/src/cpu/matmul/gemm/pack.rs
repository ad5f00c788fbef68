//! Packing: copies a block of an operand into panels, in the order the micro-kernel reads them.

use std::ops::Range;

use super::block::Block;
use crate::cpu::isa::Isa;
use crate::cpu::matmul::matrix::round_to_bf16_bits;
use crate::cpu::matmul::panel::{Format, PanelLayout};

/// Converts elements of an operand to 32-bit words of a panel.
trait Encode {
    /// Number of elements per word.
    const K: usize;
    /// Packs one element, or two adjacent ones along k, into a word.
    fn word(first: f32, second: Option<f32>) -> u32;
}

/// f32 elements, unchanged.
struct Plain;
/// f32 elements rounded to bf16 but stored as f32.
struct Rounded;
/// Pairs of f32 elements rounded to bf16.
struct RoundedPair;

impl Encode for Plain {
    const K: usize = 1;
    #[inline(always)]
    fn word(first: f32, _: Option<f32>) -> u32 {
        first.to_bits()
    }
}

impl Encode for Rounded {
    const K: usize = 1;
    #[inline(always)]
    fn word(first: f32, _: Option<f32>) -> u32 {
        round_to_bf16_bits(first)
    }
}

impl Encode for RoundedPair {
    const K: usize = 2;
    #[inline(always)]
    fn word(first: f32, second: Option<f32>) -> u32 {
        (round_to_bf16_bits(first) >> 16) | second.map_or(0, round_to_bf16_bits)
    }
}

/// Packs f32 elements. `bf16` requests rounding to bf16 where the panel format is f32.
pub(super) fn pack_f32(
    isa: Isa,
    block: &Block<'_>,
    panels: PanelLayout,
    bf16: bool,
    dst: &mut [u32],
) {
    #[cfg(target_arch = "x86_64")]
    if block.panel_stride() == 1 || block.k_stride() == 1 {
        let isa = isa.clamp_to_current();
        match panels.format {
            Format::Bf16Pair if isa >= Isa::Avx512Bf16 => {
                // SAFETY: `clamp_to_current` ensures that the machine supports the level, and one of
                // the strides is 1.
                return unsafe { super::pack_avx512::pack_f32_as_pairs(block, panels, dst) };
            }
            Format::F32 if isa >= Isa::Avx512 && !bf16 => {
                // SAFETY: `clamp_to_current` ensures that the machine supports the level, and one of
                // the strides is 1.
                return unsafe { super::pack_avx512::pack_f32(block, panels, dst) };
            }
            _ => {}
        }
    }
    match (panels.format, bf16) {
        (Format::Bf16Pair, _) => dispatch::<RoundedPair>(isa, block, panels, dst),
        (Format::F32, true) => dispatch::<Rounded>(isa, block, panels, dst),
        (Format::F32, false) => dispatch::<Plain>(isa, block, panels, dst),
    }
}

/// Runs `pack` compiled for the machine's instruction set; otherwise the rounding would not vectorize.
fn dispatch<E: Encode>(isa: Isa, block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<E: Encode>(block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
            pack::<E>(block, panels, dst);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<E: Encode>(block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
            pack::<E>(block, panels, dst);
        }
        let isa = isa.clamp_to_current();
        if isa >= Isa::Avx512 {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level.
            return unsafe { avx512::<E>(block, panels, dst) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level.
            return unsafe { avx2::<E>(block, panels, dst) };
        }
    }
    let _ = isa;
    pack::<E>(block, panels, dst);
}

/// Packs the block panel by panel.
#[inline(always)]
fn pack<E: Encode>(block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
    let words = block.kc().div_ceil(E::K);
    for first in (0..block.len()).step_by(panels.width) {
        let used = panels.width.min(block.len() - first);
        let width = used.next_multiple_of(panels.pad);
        let dst = &mut dst[first * words..(first + width) * words];
        if used < width {
            dst.fill(0);
        }
        let strip = Strip { block, first };
        if block.panel_stride() == 1 {
            strip.pack_across::<E>(used, width, dst);
        } else if block.k_stride() == 1 {
            strip.pack_transposed::<E>(used, width, dst);
        } else {
            strip.pack_words::<E>(0..used, 0..words, width, dst);
        }
    }
}

/// The part of a block that fills one panel.
struct Strip<'a> {
    block: &'a Block<'a>,
    first: usize,
}

impl Strip<'_> {
    /// Returns the elements from element `k` of row `i` on.
    #[inline(always)]
    fn elements(&self, i: usize, k: usize) -> &[f32] {
        self.block.elements(self.first + i, k)
    }

    /// Packs one word at a time, for arbitrary strides.
    #[inline(always)]
    fn pack_words<E: Encode>(
        &self,
        rows: Range<usize>,
        words: Range<usize>,
        width: usize,
        dst: &mut [u32],
    ) {
        for w in words {
            let k = w * E::K;
            let has_second = E::K == 2 && k + 1 < self.block.kc();
            for i in rows.clone() {
                let second = has_second.then(|| self.elements(i, k + 1)[0]);
                dst[w * width + i] = E::word(self.elements(i, k)[0], second);
            }
        }
    }

    /// Packs elements that are contiguous across the panel: a copy for each word of k.
    #[inline(always)]
    fn pack_across<E: Encode>(&self, used: usize, width: usize, dst: &mut [u32]) {
        match used {
            32 => self.copy_across::<E, 32>(dst),
            16 if width == 16 => self.copy_across::<E, 16>(dst),
            8 if width == 8 => self.copy_across::<E, 8>(dst),
            6 if width == 6 => self.copy_across::<E, 6>(dst),
            _ => self.pack_words::<E>(0..used, 0..self.block.kc().div_ceil(E::K), width, dst),
        }
    }

    /// `pack_across` for a full panel, with a constant width so that it vectorizes.
    #[inline(always)]
    fn copy_across<E: Encode, const W: usize>(&self, dst: &mut [u32]) {
        let full_words = self.block.kc() / E::K;
        for (w, out) in dst.chunks_exact_mut(W).enumerate().take(full_words) {
            let first = &self.elements(0, w * E::K)[..W];
            let second = &self.elements(0, w * E::K + E::K - 1)[..W];
            for i in 0..W {
                out[i] = E::word(first[i], Some(second[i]));
            }
        }
        self.pack_words::<E>(0..W, full_words..self.block.kc().div_ceil(E::K), W, dst);
    }

    /// Packs elements that are contiguous along k by transposing blocks of four by four words.
    ///
    /// Each row contributes sixteen words at a time, so that a cache line is fully used while it is
    /// in the cache.
    #[inline(always)]
    fn pack_transposed<E: Encode>(&self, used: usize, width: usize, dst: &mut [u32]) {
        let full_words = self.block.kc() / E::K / 4 * 4;
        let full_rows = used / 4 * 4;
        for w0 in (0..full_words).step_by(16) {
            for i in (0..full_rows).step_by(4) {
                for w in (w0..full_words.min(w0 + 16)).step_by(4) {
                    let rows = [0, 1, 2, 3].map(|r| self.four_words::<E>(i + r, w));
                    for (t, column) in transpose(rows).iter().enumerate() {
                        let start = (w + t) * width + i;
                        dst[start..start + 4].copy_from_slice(column);
                    }
                }
            }
        }
        let words = self.block.kc().div_ceil(E::K);
        self.pack_words::<E>(full_rows..used, 0..full_words, width, dst);
        self.pack_words::<E>(0..used, full_words..words, width, dst);
    }

    /// Returns four adjacent words of row `i`.
    #[inline(always)]
    fn four_words<E: Encode>(&self, i: usize, w: usize) -> [u32; 4] {
        let elements = &self.elements(i, w * E::K)[..4 * E::K];
        if E::K == 1 {
            [0, 1, 2, 3].map(|t| E::word(elements[t], None))
        } else {
            [0, 2, 4, 6].map(|t| E::word(elements[t], Some(elements[t + 1])))
        }
    }
}

/// Transposes four rows of four words.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    use core::arch::x86_64::{
        _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    };
    // SAFETY: every x86-64 CPU has SSE2, and all types are 128 bits of plain data.
    unsafe {
        let r: [core::arch::x86_64::__m128i; 4] = std::mem::transmute(rows);
        let (a, b) = (
            _mm_unpacklo_epi32(r[0], r[1]),
            _mm_unpacklo_epi32(r[2], r[3]),
        );
        let (c, d) = (
            _mm_unpackhi_epi32(r[0], r[1]),
            _mm_unpackhi_epi32(r[2], r[3]),
        );
        std::mem::transmute([
            _mm_unpacklo_epi64(a, b),
            _mm_unpackhi_epi64(a, b),
            _mm_unpacklo_epi64(c, d),
            _mm_unpackhi_epi64(c, d),
        ])
    }
}

/// Transposes four rows of four words.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    [0, 1, 2, 3].map(|t| [0, 1, 2, 3].map(|r| rows[r][t]))
}
