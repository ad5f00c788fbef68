//! Integer dot products with AVX2 and AVX-512 VNNI.

#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::activation::{ActivationBlock, Activations};
use super::{GROUPS, Line, PANEL, QuantMatrix};

/// 8-bit weights, with AVX2.
#[target_feature(enable = "avx2,fma")]
pub(super) fn int8_avx2(lines: &[Line], x: &ActivationBlock) -> [i32; PANEL] {
    let mut acc = [_mm256_setzero_si256(); 4];
    for g in 0..GROUPS {
        for (q, acc) in acc.iter_mut().enumerate() {
            let weights = quarter(&lines[g], q);
            *acc = _mm256_add_epi32(*acc, multiply(weights, x, g));
        }
    }
    reduce(acc)
}

/// 4-bit weights, with AVX2.
#[target_feature(enable = "avx2,fma")]
pub(super) fn int4_avx2(lines: &[Line], x: &ActivationBlock) -> [i32; PANEL] {
    let mut acc = [_mm256_setzero_si256(); 4];
    let mask = _mm_set1_epi8(15);
    for g in 0..GROUPS / 2 {
        for (q, acc) in acc.iter_mut().enumerate() {
            let weights = quarter(&lines[g], q);
            let low = _mm_and_si128(weights, mask);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(weights), mask);
            *acc = _mm256_add_epi32(*acc, multiply(low, x, 2 * g));
            *acc = _mm256_add_epi32(*acc, multiply(high, x, 2 * g + 1));
        }
    }
    reduce(acc)
}

/// Loads a quarter of a line: four values along k of four columns.
#[target_feature(enable = "avx2,fma")]
fn quarter(line: &Line, q: usize) -> __m128i {
    let bytes = &line.0[16 * q..16 * q + 16];
    // SAFETY: the slice has sixteen bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Multiplies a quarter with group `g` of the activations, summed in pairs.
#[target_feature(enable = "avx2,fma")]
fn multiply(weights: __m128i, x: &ActivationBlock, g: usize) -> __m256i {
    let x = &x.integers[4 * g..4 * g + 4];
    // SAFETY: the slice has eight bytes.
    let x = unsafe { x.as_ptr().cast::<i64>().read_unaligned() };
    _mm256_madd_epi16(_mm256_cvtepu8_epi16(weights), _mm256_set1_epi64x(x))
}

/// Adds adjacent pairs.
#[target_feature(enable = "avx2,fma")]
fn reduce(acc: [__m256i; 4]) -> [i32; PANEL] {
    let pair = |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b));
    // SAFETY: both sides are 512 bits of plain data.
    unsafe { std::mem::transmute([pair(acc[0], acc[1]), pair(acc[2], acc[3])]) }
}

/// Multiplies one panel with `M` rows, using VNNI. Sums over blocks in the same order as
/// `matvec::panel_by_blocks`, so the results are bitwise identical.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn panel_vnni<const M: usize>(
    w: &QuantMatrix,
    panel: usize,
    x: &Activations<'_>,
) -> [[f32; PANEL]; M] {
    let mut sums = [_mm512_setzero_ps(); M];
    for b in 0..w.blocks() {
        let (lines, scales) = w.block(panel, b);
        // Prefetch 2 KiB ahead: with several rows the hardware prefetcher does not reach that far.
        let ahead = lines.as_ptr().wrapping_add(32);
        for g in 0..lines.len() {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(g).cast());
        }
        let rows: [&ActivationBlock; M] = std::array::from_fn(|r| x.block(r, b));
        let dots = if let Some(lines) = lines.first_chunk::<GROUPS>() {
            int8_vnni::<M>(lines, &rows)
        } else if let Some(lines) = lines.first_chunk::<{ GROUPS / 2 }>() {
            int4_vnni::<M>(lines, &rows)
        } else {
            unreachable!("a block has four or eight lines")
        };
        // SAFETY: sixteen 16-bit scales.
        let scales = unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) };
        let scales = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(scales)));
        for r in 0..M {
            let dot = _mm512_sub_epi32(dots[r], _mm512_set1_epi32(rows[r].correction));
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(rows[r].scale));
            sums[r] = _mm512_add_ps(sums[r], _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot)));
        }
    }
    // SAFETY: both sides are `M` times 512 bits of plain data.
    unsafe { std::mem::transmute_copy(&sums) }
}

/// 8-bit weights: one line is one group of four values along k.
///
/// The number of lines is constant so that the loop is unrolled.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn int8_vnni<const M: usize>(lines: &[Line; GROUPS], rows: &[&ActivationBlock; M]) -> [__m512i; M] {
    let mut high = [_mm512_setzero_si512(); M];
    let mut low = [_mm512_setzero_si512(); M];
    for g in 0..GROUPS {
        add_group(&mut high, &mut low, load(&lines[g]), rows, g);
    }
    combine(high, low)
}

/// 4-bit weights: one line is two groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn int4_vnni<const M: usize>(
    lines: &[Line; GROUPS / 2],
    rows: &[&ActivationBlock; M],
) -> [__m512i; M] {
    let mut high = [_mm512_setzero_si512(); M];
    let mut low = [_mm512_setzero_si512(); M];
    let mask = _mm512_set1_epi8(15);
    for g in 0..GROUPS / 2 {
        let line = load(&lines[g]);
        let even = _mm512_and_si512(line, mask);
        let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask);
        add_group(&mut high, &mut low, even, rows, 2 * g);
        add_group(&mut high, &mut low, odd, rows, 2 * g + 1);
    }
    combine(high, low)
}

/// Loads a line into a register.
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line has 64 bytes and their alignment.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// Adds the products of one group with the high and the low parts of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_group<const M: usize>(
    high: &mut [__m512i; M],
    low: &mut [__m512i; M],
    weights: __m512i,
    rows: &[&ActivationBlock; M],
    g: usize,
) {
    for r in 0..M {
        high[r] = _mm512_dpbusd_epi32(high[r], weights, _mm512_set1_epi32(rows[r].high[g]));
        low[r] = _mm512_dpbusd_epi32(low[r], weights, _mm512_set1_epi32(rows[r].low[g]));
    }
}

/// Combines the dot products of the high and low parts.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn combine<const M: usize>(mut high: [__m512i; M], low: [__m512i; M]) -> [__m512i; M] {
    for r in 0..M {
        high[r] = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[r]), low[r]);
    }
    high
}
