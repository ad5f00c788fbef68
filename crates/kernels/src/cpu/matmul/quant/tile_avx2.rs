//! Products of many rows with AVX2: the integers of a panel are widened to 16 bits once, then all rows pass
//! over them.
//!
//! `vpmaddwd` multiplies pairs of 16-bit integers and adds the two products in 32 bits, so the sums of a
//! block are exact: without its offset, a weight is between -128 and 127, and an activation is at most
//! 32,639 in magnitude (`activation::MAX_INT`), so 32 products are at most 133,689,344, less than 2^31.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::activation::RowGroup;
use super::packing::unpack_lines_avx2;
use super::panel::half;
use super::{BLOCK, Block, GROUPS, Line, PANEL, QuantMatrix};

/// A block of `S` sub-blocks of a panel as [`tile`] reads it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct WideBlock<const S: usize> {
    /// The weights without offset in pairs along k, in the order of `activation::Integers`.
    pairs: [[[i16; 2]; PANEL]; BLOCK / 2],
    scales: [[f32; PANEL]; S],
    /// Unspecified if the format has none.
    minimums: [[f32; PANEL]; S],
}

/// Returns the number of scratch words for a panel of `blocks` blocks.
pub(super) fn wide_words<const S: usize>(blocks: usize) -> usize {
    blocks * (size_of::<WideBlock<S>>() / size_of::<u32>())
}

/// Widens the blocks of `panels`, which the matrix must have, in `words`.
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::cast_ptr_alignment, reason = "the alignment is checked")]
pub(super) fn widen_panels<'a, const S: usize>(
    w: &QuantMatrix,
    panels: std::ops::Range<usize>,
    words: &'a mut [u32],
) -> &'a [WideBlock<S>] {
    let count = panels.len() * w.blocks();
    assert!(
        words.len() >= wide_words::<S>(count) && words.as_ptr().cast::<WideBlock<S>>().is_aligned()
    );
    // SAFETY: the words are enough and aligned, and all bit patterns are valid.
    let wide = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), count) };
    let blocks = panels.flat_map(|p| (0..w.blocks()).map(move |b| (p, b)));
    for (wide, (panel, b)) in wide.iter_mut().zip(blocks) {
        widen(w, w.block(panel, b), wide);
    }
    wide
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn widen<const S: usize>(w: &QuantMatrix, block: Block<'_>, wide: &mut WideBlock<S>) {
    let offset = _mm256_set1_epi16(w.format.offset() as i16);
    let unpacked: [Line; GROUPS];
    let (lines, is_packed) = match (w.format.bits(), w.format.has_table()) {
        (8, _) => (block.lines, false),
        (4, false) => (block.lines, true),
        _ => {
            unpacked = unpack_lines_avx2(w.format, block.lines);
            (&unpacked[..], false)
        }
    };
    let per_line = wide.pairs.len() / lines.len();
    for (line, pairs) in lines.iter().zip(wide.pairs.chunks_exact_mut(per_line)) {
        for h in 0..2 {
            let weights = half(line, h);
            let mut set = |pair: usize, weights| {
                let to: &mut [[i16; 2]] = &mut pairs[pair][8 * h..8 * h + 8];
                // SAFETY: the slice has 32 bytes.
                unsafe {
                    let without_offset = _mm256_sub_epi16(weights, offset);
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), without_offset);
                }
            };
            if is_packed {
                let mask = _mm256_set1_epi16(15);
                set(0, _mm256_and_si256(weights, mask));
                set(1, _mm256_and_si256(_mm256_srli_epi16::<8>(weights), mask));
                set(2, _mm256_and_si256(_mm256_srli_epi16::<4>(weights), mask));
                set(3, _mm256_srli_epi16::<12>(weights));
            } else {
                set(0, _mm256_and_si256(weights, _mm256_set1_epi16(0xff)));
                set(1, _mm256_srli_epi16::<8>(weights));
            }
        }
    }
    for s in 0..S {
        wide.scales[s] = block.scales(s);
        if let Some(minimums) = block.minimums(s) {
            wide.minimums[s] = minimums;
        }
    }
}

/// Multiplies a panel with the `M` rows of `x`. Sums over sub-blocks in the same order as `panel::sum_blocks`, so
/// the results are bitwise identical.
#[target_feature(enable = "avx2,fma")]
pub(super) fn tile<const M: usize, const S: usize, const MINIMUM: bool>(
    panel: &[WideBlock<S>],
    x: &RowGroup<'_>,
) -> [[f32; PANEL]; M] {
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    let rows = x.integers.chunks_exact(x.stride);
    let row_scales = x.scales.chunks_exact(S * x.stride);
    for (block, (x_block, scales)) in panel.iter().zip(rows.zip(row_scales)) {
        let Some(integers) = x_block.first_chunk::<M>() else {
            break; // A group has `M` rows.
        };
        let parts = block.pairs.chunks_exact(BLOCK / 2 / S);
        for (s, (pairs, row)) in parts.zip(scales.chunks_exact(x.stride)).enumerate() {
            let Some(row) = row.first_chunk::<M>() else {
                break;
            };
            let mut dots = [[_mm256_setzero_si256(); 2]; M];
            for (pair, weights) in pairs.iter().enumerate() {
                let weights = load(weights);
                for r in 0..M {
                    let values = _mm256_set1_epi32(integers[r].0[s * (BLOCK / 2 / S) + pair]);
                    for h in 0..2 {
                        let products = _mm256_madd_epi16(weights[h], values);
                        dots[r][h] = _mm256_add_epi32(dots[r][h], products);
                    }
                }
            }
            let scales = load_f32(&block.scales[s]);
            for r in 0..M {
                for h in 0..2 {
                    let scale = _mm256_mul_ps(scales[h], _mm256_set1_ps(row[r].scale));
                    let product = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(dots[r][h]));
                    sums[r][h] = _mm256_add_ps(sums[r][h], product);
                }
            }
            if MINIMUM {
                let minimums = load_f32(&block.minimums[s]);
                for r in 0..M {
                    for h in 0..2 {
                        let minimum = _mm256_mul_ps(minimums[h], _mm256_set1_ps(row[r].sum));
                        sums[r][h] = _mm256_add_ps(sums[r][h], minimum);
                    }
                }
            }
        }
    }
    // SAFETY: both sides are `M` times 512 bits of plain data.
    unsafe { std::mem::transmute_copy(&sums) }
}

/// Loads a pair of weights of each column.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(pairs: &[[i16; 2]; PANEL]) -> [__m256i; 2] {
    let (low, high) = pairs.split_at(PANEL / 2);
    // SAFETY: both slices have 32 bytes.
    unsafe { [low, high].map(|half| _mm256_loadu_si256(half.as_ptr().cast())) }
}

/// Loads a value of each column.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_f32(values: &[f32; PANEL]) -> [__m256; 2] {
    let from = values.as_ptr();
    // SAFETY: the array has sixteen values.
    unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
}
