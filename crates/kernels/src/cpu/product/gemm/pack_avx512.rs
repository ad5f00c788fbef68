//! Packing with AVX-512: sixteen words at a time, with masks at the edges.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::pack::{Block, Panels};
use crate::cpu::product::matrix::Bf16;

/// How sixteen words of a panel are read. The masks keep a read within the operand.
pub(super) trait Read16 {
    /// The operand's element.
    type T: Copy;
    /// Values per word.
    const K: usize;
    /// Words from `values` values that are contiguous along k.
    unsafe fn along_k(at: *const Self::T, values: usize) -> __m512i;
    /// The words of `count` rows or columns that are contiguous across the panel; `pair` is
    /// the distance to the second value of each word, or none at the odd end of k.
    unsafe fn across(at: *const Self::T, count: usize, pair: Option<usize>) -> __m512i;
}

/// f32 values as they are.
pub(super) struct Plain;
/// Pairs of f32 values rounded to bf16.
pub(super) struct RoundedPair;
/// Pairs of bf16 values.
pub(super) struct Pair;

/// The lowest `n` bits, up to sixteen.
#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    ((1_u32 << n.min(16)) - 1) as __mmask16
}

impl Read16 for Plain {
    type T = f32;
    const K: usize = 1;
    #[inline(always)]
    unsafe fn along_k(at: *const f32, values: usize) -> __m512i {
        // SAFETY: the caller vouches for the values and the features.
        unsafe { _mm512_maskz_loadu_epi32(mask16(values), at.cast()) }
    }
    #[inline(always)]
    unsafe fn across(at: *const f32, count: usize, _: Option<usize>) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_epi32(mask16(count), at.cast()) }
    }
}

impl Read16 for RoundedPair {
    type T = f32;
    const K: usize = 2;
    #[inline(always)]
    unsafe fn along_k(at: *const f32, values: usize) -> __m512i {
        // SAFETY: the caller vouches for the values and the features; the conversion's result
        // is 512 bits of plain data.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask16(values), at);
            let high = mask16(values.saturating_sub(16));
            let high = _mm512_maskz_loadu_ps(high, at.wrapping_add(16));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    unsafe fn across(at: *const f32, count: usize, pair: Option<usize>) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let first = _mm512_maskz_loadu_ps(mask16(count), at);
            let second = match pair {
                Some(step) => _mm512_maskz_loadu_ps(mask16(count), at.wrapping_add(step)),
                None => _mm512_setzero_ps(),
            };
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(both));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }
}

impl Read16 for Pair {
    type T = Bf16;
    const K: usize = 2;
    #[inline(always)]
    unsafe fn along_k(at: *const Bf16, values: usize) -> __m512i {
        let mask = ((1_u64 << values.min(32)) - 1) as __mmask32;
        // SAFETY: the caller vouches for the values and the features.
        unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) }
    }
    #[inline(always)]
    unsafe fn across(at: *const Bf16, count: usize, pair: Option<usize>) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let mask = mask16(count);
            let first = _mm256_maskz_loadu_epi16(mask, at.cast());
            let second = match pair {
                Some(step) => _mm256_maskz_loadu_epi16(mask, at.wrapping_add(step).cast()),
                None => _mm256_setzero_si256(),
            };
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
            _mm512_or_si512(_mm512_cvtepu16_epi32(first), high)
        }
    }
}

/// Words between a read along k and the prefetch that goes with it: too many rows take turns
/// for the hardware to follow them all.
const AHEAD: usize = 64;

/// Packs f32 values as f32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn plain(block: &Block<f32>, panels: Panels, dst: &mut [u32]) {
    pack::<Plain>(block, panels, dst);
}

/// Packs f32 values as pairs of bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn rounded_pairs(block: &Block<f32>, panels: Panels, dst: &mut [u32]) {
    pack::<RoundedPair>(block, panels, dst);
}

/// Packs bf16 values as pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn pairs(block: &Block<Bf16>, panels: Panels, dst: &mut [u32]) {
    pack::<Pair>(block, panels, dst);
}

/// Packs a block; one of its strides must be 1.
#[inline(always)]
fn pack<R: Read16>(block: &Block<R::T>, panels: Panels, dst: &mut [u32]) {
    let words = block.kc.div_ceil(R::K);
    let last = block.len % panels.width;
    let padded = block.len - last + last.next_multiple_of(panels.pad);
    let dst = dst[..padded * words].as_mut_ptr();
    // SAFETY: the block lies within its slice (`Block::of_rows`), the panels within `dst`.
    unsafe {
        if block.panel_stride == 1 {
            return across::<R>(block, panels, dst);
        }
        for from in (0..block.len).step_by(panels.width) {
            let used = panels.width.min(block.len - from);
            let width = used.next_multiple_of(panels.pad);
            let start = block.start.wrapping_add(from * block.panel_stride);
            let rows = Rows {
                start,
                stride: block.panel_stride,
                used,
                width,
            };
            transposed::<R>(&rows, block.kc, dst.add(from * words));
        }
    }
}

/// Values contiguous across the panels: each word of k is copied to a few panels in turn.
///
/// Few, because the panels lie a multiple of the page size apart and so compete for the same
/// lines of the nearest cache; the rows likewise lie too far apart for the hardware to fetch
/// them ahead.
#[inline(always)]
unsafe fn across<R: Read16>(block: &Block<R::T>, panels: Panels, dst: *mut u32) {
    let words = block.kc.div_ceil(R::K);
    let step = 4 * panels.width;
    for first in (0..block.len).step_by(step) {
        let end = block.len.min(first + step);
        for w in 0..words {
            let k = w * R::K;
            let pair = (k + 1 < block.kc).then_some(block.k_stride);
            let row = block.start.wrapping_add(k * block.k_stride);
            // SAFETY: the features are the caller's; a prefetch takes any address.
            unsafe { prefetch_rows::<R>(row, block.k_stride, first, end) };
            for from in (first..end).step_by(panels.width) {
                let used = panels.width.min(block.len - from);
                let width = used.next_multiple_of(panels.pad);
                for i in (0..width).step_by(16) {
                    // SAFETY: the masks keep the reads below `used`; the writes stay within
                    // the panel.
                    unsafe {
                        let v = R::across(row.wrapping_add(from + i), used.saturating_sub(i), pair);
                        let to = dst.add(from * words + w * width + i);
                        if w * width + i + 16 <= words * width {
                            // A masked store is slow. The next word overwrites what is too much.
                            _mm512_storeu_si512(to.cast(), v);
                        } else {
                            _mm512_mask_storeu_epi32(to.cast(), mask16(width - i), v);
                        }
                    }
                }
            }
        }
    }
}

/// Asks for the values `from..to` of rows some way ahead of `row`.
#[inline(always)]
unsafe fn prefetch_rows<R: Read16>(row: *const R::T, k_stride: usize, from: usize, to: usize) {
    for pair in 0..R::K {
        let ahead = row.wrapping_add((16 + pair) * k_stride);
        for i in (from..to).step_by(64 / size_of::<R::T>()) {
            // SAFETY: a prefetch takes any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(i).cast()) };
        }
    }
}

/// The rows (of A, or columns of B) of one panel.
struct Rows<T> {
    start: *const T,
    stride: usize,
    used: usize,
    width: usize,
}

/// Values contiguous along k: blocks of four rows by sixteen words are transposed.
///
/// All rows in turn for the same words: their cache lines are used up while they are near.
#[inline(always)]
unsafe fn transposed<R: Read16>(rows: &Rows<R::T>, kc: usize, dst: *mut u32) {
    let words = kc.div_ceil(R::K);
    for w in (0..words).step_by(16) {
        let values = (kc - w * R::K).min(16 * R::K);
        let count = (words - w).min(16);
        for i in (0..rows.width).step_by(4) {
            // SAFETY: rows beyond `used` read nothing; the writes stay below `width` and `words`.
            unsafe {
                let mut v = [_mm512_setzero_si512(); 4];
                for (r, v) in v.iter_mut().enumerate() {
                    let at = rows.start.wrapping_add((i + r) * rows.stride + w * R::K);
                    *v = R::along_k(at, if i + r < rows.used { values } else { 0 });
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * R::K).cast());
                }
                let dst = dst.add(w * rows.width + i);
                if count == 16 && i + 4 <= rows.width {
                    store_whole(transpose(v), rows.width, dst);
                } else {
                    store_part(transpose(v), rows.width, rows.width - i, count, dst);
                }
            }
        }
    }
}

/// Transposes within each quarter: quarter `q` of register `t` gets word `4 q + t` of the four
/// rows.
#[inline(always)]
unsafe fn transpose(r: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller has the features.
    unsafe {
        let (a, b) = (
            _mm512_unpacklo_epi32(r[0], r[1]),
            _mm512_unpacklo_epi32(r[2], r[3]),
        );
        let (c, d) = (
            _mm512_unpackhi_epi32(r[0], r[1]),
            _mm512_unpackhi_epi32(r[2], r[3]),
        );
        [
            _mm512_unpacklo_epi64(a, b),
            _mm512_unpackhi_epi64(a, b),
            _mm512_unpacklo_epi64(c, d),
            _mm512_unpackhi_epi64(c, d),
        ]
    }
}

/// Stores sixteen words of four rows.
#[inline(always)]
unsafe fn store_whole(v: [__m512i; 4], width: usize, dst: *mut u32) {
    for (t, v) in v.into_iter().enumerate() {
        // SAFETY: passed on from the caller.
        unsafe {
            let put = |w: usize, x| _mm_storeu_si128(dst.add(w * width).cast(), x);
            put(t, _mm512_castsi512_si128(v));
            put(4 + t, _mm512_extracti32x4_epi32::<1>(v));
            put(8 + t, _mm512_extracti32x4_epi32::<2>(v));
            put(12 + t, _mm512_extracti32x4_epi32::<3>(v));
        }
    }
}

/// Stores `count` words of `rows` (at most four) rows.
#[inline(always)]
unsafe fn store_part(v: [__m512i; 4], width: usize, rows: usize, count: usize, dst: *mut u32) {
    let mut words = [[0_u32; 4]; 16];
    // SAFETY: `words` is plain data; the writes stay below `count` and `rows`.
    unsafe {
        store_whole(v, 4, words.as_mut_ptr().cast());
        for (w, word) in words.iter().enumerate().take(count) {
            dst.add(w * width)
                .copy_from_nonoverlapping(word.as_ptr(), rows.min(4));
        }
    }
}
