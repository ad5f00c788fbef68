//! Packing with AVX-512: sixteen words at a time, masked at the edges.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::block::Block;
use crate::cpu::matmul::panel::PanelLayout;

/// Loads sixteen words of a panel. Masks keep the loads within the operand.
pub(super) trait Load16 {
    /// Number of elements per word.
    const K: usize;
    /// Loads words from `count` elements that are contiguous along k.
    ///
    /// # Safety
    /// The machine must support AVX-512 (for pairs, with bf16), and `count` elements, at most 16 times
    /// [`K`](Self::K), must be readable at `src`.
    unsafe fn load_along_k(src: *const f32, count: usize) -> __m512i;
    /// Loads words of `count` rows or columns that are contiguous across the panel. `pair_stride` is
    /// the distance to the second element of each word, or `None` at the end of an odd k.
    ///
    /// # Safety
    /// The machine must support AVX-512 (for pairs, with bf16). At most the first sixteen of `count`
    /// elements must be readable at `src` and, for pairs, `pair_stride` elements after it.
    unsafe fn load_across(src: *const f32, count: usize, pair_stride: Option<usize>) -> __m512i;
}

/// f32 elements, unchanged.
pub(super) struct Plain;
/// Pairs of f32 elements rounded to bf16.
pub(super) struct RoundedPair;

/// Returns a mask of the lowest `n` bits, at most sixteen.
#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    ((1_u32 << n.min(16)) - 1) as __mmask16
}

impl Load16 for Plain {
    const K: usize = 1;
    #[inline(always)]
    unsafe fn load_along_k(src: *const f32, count: usize) -> __m512i {
        // SAFETY: the caller guarantees the elements and the target features.
        unsafe { _mm512_maskz_loadu_epi32(mask16(count), src.cast()) }
    }
    #[inline(always)]
    unsafe fn load_across(src: *const f32, count: usize, _: Option<usize>) -> __m512i {
        // SAFETY: the caller guarantees the elements and the target features.
        unsafe { _mm512_maskz_loadu_epi32(mask16(count), src.cast()) }
    }
}

impl Load16 for RoundedPair {
    const K: usize = 2;
    #[inline(always)]
    unsafe fn load_along_k(src: *const f32, count: usize) -> __m512i {
        // SAFETY: the caller guarantees the elements and the target features; the result of the
        // conversion is 512 bits of plain data.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask16(count), src);
            let high = mask16(count.saturating_sub(16));
            let high = _mm512_maskz_loadu_ps(high, src.wrapping_add(16));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }
    #[inline(always)]
    unsafe fn load_across(src: *const f32, count: usize, pair_stride: Option<usize>) -> __m512i {
        // SAFETY: the caller guarantees the elements and the target features; the result of the
        // conversion is 512 bits of plain data.
        unsafe {
            let first = _mm512_maskz_loadu_ps(mask16(count), src);
            let second = match pair_stride {
                Some(stride) => _mm512_maskz_loadu_ps(mask16(count), src.wrapping_add(stride)),
                None => _mm512_setzero_ps(),
            };
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(both));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }
}

/// Prefetch distance of loads along k, in words. The hardware prefetcher cannot track that many
/// interleaved rows.
const PREFETCH_DISTANCE: usize = 64;

/// Packs f32 elements as f32.
///
/// # Safety
/// The machine must support the target features, and one of the block's strides must be 1.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_f32(block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
    // SAFETY: the caller upholds the contract of `pack`.
    unsafe { pack::<Plain>(block, panels, dst) }
}

/// Packs f32 elements as pairs of bf16.
///
/// # Safety
/// The machine must support the target features, and one of the block's strides must be 1.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_f32_as_pairs(block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
    // SAFETY: the caller upholds the contract of `pack`.
    unsafe { pack::<RoundedPair>(block, panels, dst) }
}

/// Packs a block.
///
/// # Safety
/// The machine must support the target features, and one of the block's strides must be 1.
#[inline(always)]
unsafe fn pack<R: Load16>(block: &Block<'_>, panels: PanelLayout, dst: &mut [u32]) {
    let words = block.kc().div_ceil(R::K);
    let last = block.len() % panels.width;
    let padded = block.len() - last + last.next_multiple_of(panels.pad);
    let dst = dst[..padded * words].as_mut_ptr();
    // SAFETY: the caller guarantees the target features; the block lies within its slice
    // (`Block::from_rows`), the panels within `dst`.
    unsafe {
        if block.panel_stride() == 1 {
            return pack_across::<R>(block, panels, dst);
        }
        for first in (0..block.len()).step_by(panels.width) {
            let used = panels.width.min(block.len() - first);
            let width = used.next_multiple_of(panels.pad);
            let start = block.address(first, 0);
            let rows = PanelRows {
                start,
                stride: block.panel_stride(),
                used,
                width,
            };
            pack_transposed::<R>(&rows, block.kc(), dst.add(first * words));
        }
    }
}

/// Packs elements that are contiguous across the panels: each word of k is copied to a few panels
/// at a time.
///
/// Only a few, because panels are a multiple of the page size apart and map to the same L1 cache
/// sets. The rows are too far apart for the hardware prefetcher.
///
/// # Safety
/// The machine must support the target features; sources and destinations must be valid as described.
#[inline(always)]
unsafe fn pack_across<R: Load16>(block: &Block<'_>, panels: PanelLayout, dst: *mut u32) {
    let words = block.kc().div_ceil(R::K);
    let step = 4 * panels.width;
    for first in (0..block.len()).step_by(step) {
        let end = block.len().min(first + step);
        for w in 0..words {
            let k = w * R::K;
            let pair_stride = (k + 1 < block.kc()).then_some(block.k_stride());
            let row = block.address(0, k);
            // SAFETY: the caller guarantees the target features; a prefetch accepts any address.
            unsafe { prefetch_rows::<R>(row, block.k_stride(), first, end) };
            for panel in (first..end).step_by(panels.width) {
                let used = panels.width.min(block.len() - panel);
                let width = used.next_multiple_of(panels.pad);
                for i in (0..width).step_by(16) {
                    // SAFETY: the masks keep the loads below `used`; the stores stay within the
                    // panel.
                    unsafe {
                        let src = row.wrapping_add(panel + i);
                        let v = R::load_across(src, used.saturating_sub(i), pair_stride);
                        let dst = dst.add(panel * words + w * width + i);
                        if w * width + i + 16 <= words * width {
                            // A masked store is slow, and the next word overwrites the excess.
                            _mm512_storeu_si512(dst.cast(), v);
                        } else {
                            _mm512_mask_storeu_epi32(dst.cast(), mask16(width - i), v);
                        }
                    }
                }
            }
        }
    }
}

/// Prefetches elements `start..end` of rows some distance ahead of `row`.
///
/// # Safety
/// The machine must support the target features; sources and destinations must be valid as described.
#[inline(always)]
unsafe fn prefetch_rows<R: Load16>(row: *const f32, k_stride: usize, start: usize, end: usize) {
    for pair in 0..R::K {
        let ahead = row.wrapping_add((16 + pair).wrapping_mul(k_stride));
        for i in (start..end).step_by(64 / size_of::<f32>()) {
            // SAFETY: a prefetch accepts any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(i).cast()) };
        }
    }
}

/// The rows of A, or columns of B, of one panel.
struct PanelRows {
    start: *const f32,
    stride: usize,
    used: usize,
    width: usize,
}

/// Packs elements that are contiguous along k by transposing blocks of four rows by sixteen words.
///
/// Processes all rows for the same words, so that cache lines are fully used while they are in the
/// cache.
///
/// # Safety
/// The machine must support the target features; sources and destinations must be valid as described.
#[inline(always)]
unsafe fn pack_transposed<R: Load16>(rows: &PanelRows, kc: usize, dst: *mut u32) {
    let words = kc.div_ceil(R::K);
    for w in (0..words).step_by(16) {
        let elements = (kc - w * R::K).min(16 * R::K);
        let count = (words - w).min(16);
        for i in (0..rows.width).step_by(4) {
            // SAFETY: rows beyond `used` load nothing; the stores stay below `width` and `words`.
            unsafe {
                let mut v = [_mm512_setzero_si512(); 4];
                for (r, v) in v.iter_mut().enumerate() {
                    let src = rows
                        .start
                        .wrapping_add((i + r).wrapping_mul(rows.stride).wrapping_add(w * R::K));
                    *v = R::load_along_k(src, if i + r < rows.used { elements } else { 0 });
                    _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(PREFETCH_DISTANCE * R::K).cast());
                }
                let dst = dst.add(w * rows.width + i);
                if count == 16 && i + 4 <= rows.width {
                    store_full(transpose(v), rows.width, dst);
                } else {
                    store_partial(transpose(v), rows.width, rows.width - i, count, dst);
                }
            }
        }
    }
}

/// Transposes within each 128-bit lane: lane `q` of register `t` receives word `4 q + t` of the four
/// rows.
///
/// # Safety
/// The machine must support the target features; sources and destinations must be valid as described.
#[inline(always)]
unsafe fn transpose(r: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller guarantees the target features.
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
///
/// # Safety
/// The machine must support the target features; sources and destinations must be valid as described.
#[inline(always)]
unsafe fn store_full(v: [__m512i; 4], width: usize, dst: *mut u32) {
    for (t, v) in v.into_iter().enumerate() {
        // SAFETY: the caller guarantees the target features and a valid destination.
        unsafe {
            let store = |w: usize, x| _mm_storeu_si128(dst.add(w * width).cast(), x);
            store(t, _mm512_castsi512_si128(v));
            store(4 + t, _mm512_extracti32x4_epi32::<1>(v));
            store(8 + t, _mm512_extracti32x4_epi32::<2>(v));
            store(12 + t, _mm512_extracti32x4_epi32::<3>(v));
        }
    }
}

/// Stores `count` words of `rows` rows, at most four.
///
/// # Safety
/// The machine must support the target features; sources and destinations must be valid as described.
#[inline(always)]
unsafe fn store_partial(v: [__m512i; 4], width: usize, rows: usize, count: usize, dst: *mut u32) {
    let mut words = [[0_u32; 4]; 16];
    // SAFETY: `words` is plain data; the stores stay below `count` and `rows`.
    unsafe {
        store_full(v, 4, words.as_mut_ptr().cast());
        for (w, word) in words.iter().enumerate().take(count) {
            dst.add(w * width)
                .copy_from_nonoverlapping(word.as_ptr(), rows.min(4));
        }
    }
}
