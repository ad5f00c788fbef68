//! Products with AVX-512 VNNI: of one row with a panel, and of a group of rows with two panels.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::activation::{Integers, RowGroup};
use super::packing::{load, unpack_registers};
use super::{Block, BlockFormat, GROUPS, Line, PANEL, QuantMatrix};

/// Panels that a tile multiplies, as [`tile`] reads them: unsigned bytes, eight lines per block, with the f32
/// scales of all sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct TilePanel<'a> {
    pub(super) lines: &'a [[Line; GROUPS]],
    pub(super) scales: &'a [[f32; PANEL]],
    /// Empty if the format has none.
    pub(super) minimums: &'a [[f32; PANEL]],
}

/// Multiplies `P` panels with blocks of `S` sub-blocks with `M` rows, and prefetches `next`, lines that will be needed
/// later. Sums over sub-blocks in the same order as `panel::sum_blocks`, so the results are bitwise identical.
///
/// Two accumulators per sum, for the high and the low parts: independent products hide their latency.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn tile<const M: usize, const P: usize, const S: usize, const MINIMUM: bool>(
    panels: [TilePanel<'_>; P],
    x: &RowGroup<'_>,
    next: &[Line],
) -> [[[f32; PANEL]; M]; P] {
    let blocks = panels[0].lines.len();
    let lines: [&[[Line; GROUPS]]; P] = std::array::from_fn(|p| &panels[p].lines[..blocks]);
    let scales: [&[[[f32; PANEL]; S]]; P] =
        std::array::from_fn(|p| &panels[p].scales.as_chunks().0[..blocks]);
    let minimums: [&[[[f32; PANEL]; S]]; P] = std::array::from_fn(|p| {
        let count = if MINIMUM { blocks } else { 0 };
        &panels[p].minimums.as_chunks().0[..count]
    });
    let next_per_block = next.len().div_ceil(blocks.max(1));
    let rows = x.integers.chunks_exact(x.stride);
    let row_scales = x.scales.chunks_exact(S * x.stride);
    let mut sums = [[_mm512_setzero_ps(); M]; P];
    for (b, (x_block, row_scales)) in rows.zip(row_scales).enumerate().take(blocks) {
        let Some(integers) = x_block.first_chunk::<M>() else {
            break; // A group has `M` rows.
        };
        for line in next.iter().skip(b * next_per_block).take(next_per_block) {
            _mm_prefetch::<_MM_HINT_T1>(line.0.as_ptr().cast());
        }
        for s in 0..S {
            let Some(row) = row_scales[s * x.stride..].first_chunk::<M>() else {
                break;
            };
            let mut high = [[_mm512_setzero_si512(); M]; P];
            let mut low = [[_mm512_setzero_si512(); M]; P];
            if !MINIMUM {
                for p in 0..P {
                    for r in 0..M {
                        low[p][r] = _mm512_set1_epi32(-row[r].correction);
                    }
                }
            }
            for g in s * GROUPS / S..(s + 1) * GROUPS / S {
                let weights: [__m512i; P] = std::array::from_fn(|p| load(&lines[p][b][g]));
                for r in 0..M {
                    let upper = _mm512_set1_epi32(integers[r].0[g]);
                    let lower = _mm512_set1_epi32(integers[r].0[GROUPS + g]);
                    for p in 0..P {
                        high[p][r] = _mm512_dpbusd_epi32(high[p][r], weights[p], upper);
                        low[p][r] = _mm512_dpbusd_epi32(low[p][r], weights[p], lower);
                    }
                }
            }
            for p in 0..P {
                let scales = load_f32(&scales[p][b][s]);
                for r in 0..M {
                    let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[p][r]), low[p][r]);
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(row[r].scale));
                    let product = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot));
                    sums[p][r] = _mm512_add_ps(sums[p][r], product);
                }
                if MINIMUM {
                    let minimums = load_f32(&minimums[p][b][s]);
                    for r in 0..M {
                        let minimum = _mm512_mul_ps(minimums, _mm512_set1_ps(row[r].sum));
                        sums[p][r] = _mm512_add_ps(sums[p][r], minimum);
                    }
                }
            }
        }
    }
    // SAFETY: both sides are `M * P` times 512 bits of plain data.
    unsafe { std::mem::transmute_copy(&sums) }
}

/// Multiplies one panel with one row, reading the weights as they are in memory: decoding is bound by
/// that.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn row(w: &QuantMatrix, panel: usize, x: &RowGroup<'_>) -> [f32; PANEL] {
    match (w.format.bits(), w.format.has_table()) {
        (2, _) => row_of::<2, false, 2>(w, panel, x),
        (3, _) => row_of::<3, false, 2>(w, panel, x),
        (4, false) => row_of::<4, false, 1>(w, panel, x),
        (4, true) => row_of::<4, true, 1>(w, panel, x),
        (5, _) => row_of::<5, false, 1>(w, panel, x),
        (6, _) => row_of::<6, false, 2>(w, panel, x),
        _ => row_of::<8, false, 1>(w, panel, x),
    }
}

/// As [`row`], for formats of `BITS` bits and `S` sub-blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn row_of<const BITS: usize, const TABLE: bool, const S: usize>(
    w: &QuantMatrix,
    panel: usize,
    x: &RowGroup<'_>,
) -> [f32; PANEL] {
    let mut sum = _mm512_setzero_ps();
    let rows = x.integers.iter().step_by(x.stride);
    for (b, integers) in rows.enumerate() {
        let block = w.block(panel, b);
        let Some(lines) = block.lines.first_chunk::<BITS>() else {
            break; // A block has that many lines.
        };
        // Prefetch 2 KiB ahead, further than the hardware prefetcher reaches.
        let ahead = lines.as_ptr().wrapping_add(32);
        for line in 0..BITS {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast());
        }
        let weights = unpack_registers::<BITS, TABLE>(lines);
        for s in 0..S {
            let x = &x.scales[(b * S + s) * x.stride];
            let mut parts = [_mm512_setzero_si512(), _mm512_set1_epi32(-x.correction)];
            for g in s * GROUPS / S..(s + 1) * GROUPS / S {
                add_group(&mut parts, weights[g], integers, g);
            }
            let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(parts[0]), parts[1]);
            let scale = _mm512_mul_ps(scales(&block, s), _mm512_set1_ps(x.scale));
            sum = _mm512_add_ps(sum, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot)));
            if let Some(minimums) = minimums(&block, s) {
                let minimum = _mm512_mul_ps(minimums, _mm512_set1_ps(x.sum));
                sum = _mm512_add_ps(sum, minimum);
            }
        }
    }
    // SAFETY: both sides are 512 bits of plain data.
    unsafe { std::mem::transmute(sum) }
}

/// Prefetches a place of the result, which is written when a tile is complete: in a large result, each
/// is in another page.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn prefetch_result(place: *const f32) {
    _mm_prefetch::<_MM_HINT_T0>(place.cast());
}

/// Adds the products of one group with the high and the low parts of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_group(parts: &mut [__m512i; 2], weights: __m512i, x: &Integers, g: usize) {
    parts[0] = _mm512_dpbusd_epi32(parts[0], weights, _mm512_set1_epi32(x.0[g]));
    parts[1] = _mm512_dpbusd_epi32(parts[1], weights, _mm512_set1_epi32(x.0[GROUPS + g]));
}

/// Returns the scales of a sub-block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scales(block: &Block<'_>, sub_block: usize) -> __m512 {
    multiply(
        to_f32(block.format, block.scales),
        block.factors.get(sub_block),
    )
}

/// Returns the minimums of a sub-block, if the format has them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn minimums(block: &Block<'_>, sub_block: usize) -> Option<__m512> {
    let minimums = to_f32(block.format, block.minimums?);
    let row = block.format.sub_blocks() + sub_block;
    Some(multiply(minimums, block.factors.get(row)))
}

/// Multiplies with factors, if there are any.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply(values: __m512, factors: Option<&[i8; PANEL]>) -> __m512 {
    let Some(factors) = factors else {
        return values;
    };
    // SAFETY: sixteen bytes.
    let factors = unsafe { _mm_loadu_si128(factors.as_ptr().cast()) };
    _mm512_mul_ps(values, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(factors)))
}

/// Returns the values of scales or minimums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn to_f32(format: BlockFormat, halves: &[u16; PANEL]) -> __m512 {
    // SAFETY: sixteen 16-bit values.
    let halves = unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) };
    if format.has_f16_scales() {
        _mm512_cvtph_ps(halves)
    } else {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}

/// Loads sixteen values into a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(values: &[f32; PANEL]) -> __m512 {
    // SAFETY: the array has sixteen values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}
