//! Products of a panel with a group of rows: the definition in plain Rust, and with AVX2.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::activation::{Integers, RowGroup};
use super::packing::unpack_lines;
#[cfg(target_arch = "x86_64")]
use super::packing::unpack_lines_avx2;
use super::{Block, GROUPS, Line, PANEL, QuantMatrix};
use crate::cpu::isa::Isa;

/// The dot products of a block of sixteen columns with the same block of `M` rows. The integers of the
/// columns are unsigned.
type Dots<const M: usize> = [[i32; PANEL]; M];

/// Multiplies a panel with the `M` rows of `x`, on a level below VNNI.
pub(super) fn panel<const M: usize>(
    isa: Isa,
    w: &QuantMatrix,
    panel: usize,
    x: &RowGroup<'_>,
) -> [[f32; PANEL]; M] {
    #[cfg(target_arch = "x86_64")]
    if isa.clamp_to_current() >= Isa::Avx2 {
        // SAFETY: `clamp_to_current` ensures that the machine supports the level.
        return unsafe { panel_avx2(w, panel, x) };
    }
    let _ = isa;
    let format = w.format;
    let unpack = |block: &Block<'_>| unpack_lines(format, block.lines);
    match (format.bits(), format.sub_blocks()) {
        (8, _) => sum_blocks::<M, 1>(w, panel, x, |block, groups, x| dots(block.lines, groups, x)),
        (_, 1) => sum_blocks::<M, 1>(w, panel, x, |block, groups, x| {
            dots(&unpack(block), groups, x)
        }),
        _ => sum_blocks::<M, 2>(w, panel, x, |block, groups, x| {
            dots(&unpack(block), groups, x)
        }),
    }
}

/// The groups of four values of a sub-block.
type Groups = std::ops::Range<usize>;

/// Sums over the `S` sub-blocks of blocks, in f32: first the products with the scales, then those with the minimum.
/// All kernels have this order.
#[inline(always)]
fn sum_blocks<const M: usize, const S: usize>(
    w: &QuantMatrix,
    panel: usize,
    x: &RowGroup<'_>,
    dots: impl Fn(&Block<'_>, Groups, [&Integers; M]) -> Dots<M>,
) -> [[f32; PANEL]; M] {
    let mut sums = [[0.0; PANEL]; M];
    for b in 0..w.blocks() {
        let block = w.block(panel, b);
        for s in 0..S {
            let (scales, minimums) = (block.scales(s), block.minimums(s));
            let groups = s * (GROUPS / S)..(s + 1) * (GROUPS / S);
            let integers = std::array::from_fn(|r| &x.integers[b * x.stride + r]);
            let dots = dots(&block, groups, integers);
            for r in 0..M {
                let x = &x.scales[(b * S + s) * x.stride + r];
                for c in 0..PANEL {
                    let product = (dots[r][c] - x.correction) as f32;
                    sums[r][c] += scales[c] * x.scale * product;
                }
                if let Some(minimums) = &minimums {
                    for c in 0..PANEL {
                        sums[r][c] += minimums[c] * x.sum;
                    }
                }
            }
        }
    }
    sums
}

/// Returns the sums over the four values of each group of 8-bit integers, row by row, in plain Rust.
#[inline(always)]
fn dots<const M: usize>(lines: &[Line], groups: Groups, x: [&Integers; M]) -> Dots<M> {
    let mut sums = [[0; PANEL]; M];
    for g in groups {
        for r in 0..M {
            add_group(
                &mut sums[r],
                &lines[g].0,
                [x[r].0[2 * g], x[r].0[2 * g + 1]],
            );
        }
    }
    sums
}

/// Adds the products of four values along k for sixteen columns.
#[inline(always)]
fn add_group(sums: &mut [i32; PANEL], weights: &[u8; 64], [even, odd]: [i32; 2]) {
    // The values are first and third, second and fourth.
    let low = |word: i32| i32::from(word as i16);
    let x = [low(even), low(odd), even >> 16, odd >> 16];
    for (sum, w) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
        for t in 0..4 {
            *sum += i32::from(w[t]) * x[t];
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn panel_avx2<const M: usize>(
    w: &QuantMatrix,
    panel: usize,
    x: &RowGroup<'_>,
) -> [[f32; PANEL]; M] {
    let format = w.format;
    match (format.bits(), format.has_table(), format.sub_blocks()) {
        (8, ..) => sum_blocks::<M, 1>(w, panel, x, |block, groups, x| {
            int8_avx2::<M, true>(block.lines, groups, x)
        }),
        // Two operations per group, without a detour through memory.
        (4, false, _) => sum_blocks::<M, 1>(w, panel, x, |block, _, x| int4_avx2(block.lines, x)),
        (_, _, 1) => sum_blocks::<M, 1>(w, panel, x, |block, groups, x| {
            int8_avx2::<M, false>(&unpack_lines_avx2(format, block.lines), groups, x)
        }),
        _ => sum_blocks::<M, 2>(w, panel, x, |block, groups, x| {
            int8_avx2::<M, false>(&unpack_lines_avx2(format, block.lines), groups, x)
        }),
    }
}

/// Dot products of 8-bit integers. `ALL_GROUPS` says that the groups are all lines: this copy has one caller, into which it
/// is inlined.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn int8_avx2<const M: usize, const ALL_GROUPS: bool>(
    lines: &[Line],
    groups: Groups,
    x: [&Integers; M],
) -> Dots<M> {
    let mut sums = [[_mm256_setzero_si256(); 2]; M];
    let mask = _mm256_set1_epi16(0xff);
    let (first, lines) = if ALL_GROUPS {
        (0, lines)
    } else {
        (groups.start, &lines[groups])
    };
    for (g, line) in lines.iter().enumerate() {
        let g = first + g;
        for h in 0..2 {
            let weights = half(line, h);
            let even = _mm256_and_si256(weights, mask);
            add_avx2(&mut sums, h, even, x, 2 * g);
            add_avx2(&mut sums, h, _mm256_srli_epi16::<8>(weights), x, 2 * g + 1);
        }
    }
    // SAFETY: both sides are `M` times 512 bits of plain data.
    unsafe { std::mem::transmute_copy(&sums) }
}

/// Dot products of 4-bit integers.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn int4_avx2<const M: usize>(lines: &[Line], x: [&Integers; M]) -> Dots<M> {
    let mut sums = [[_mm256_setzero_si256(); 2]; M];
    let mask = _mm256_set1_epi16(15);
    for (g, line) in lines.iter().enumerate() {
        for h in 0..2 {
            let weights = half(line, h);
            let low_even = _mm256_and_si256(weights, mask);
            let high_even = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), mask);
            let low_odd = _mm256_and_si256(_mm256_srli_epi16::<8>(weights), mask);
            let high_odd = _mm256_srli_epi16::<12>(weights);
            add_avx2(&mut sums, h, low_even, x, 4 * g);
            add_avx2(&mut sums, h, low_odd, x, 4 * g + 1);
            add_avx2(&mut sums, h, high_even, x, 4 * g + 2);
            add_avx2(&mut sums, h, high_odd, x, 4 * g + 3);
        }
    }
    // SAFETY: both sides are `M` times 512 bits of plain data.
    unsafe { std::mem::transmute_copy(&sums) }
}

/// Loads half a line: eight columns.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn half(line: &Line, h: usize) -> __m256i {
    let bytes = &line.0[32 * h..32 * h + 32];
    // SAFETY: the slice has 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Adds the products of pairs of weights with pair `pair` of each row.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_avx2<const M: usize>(
    sums: &mut [[__m256i; 2]; M],
    h: usize,
    weights: __m256i,
    x: [&Integers; M],
    pair: usize,
) {
    for r in 0..M {
        let products = _mm256_madd_epi16(weights, _mm256_set1_epi32(x[r].0[pair]));
        sums[r][h] = _mm256_add_epi32(sums[r][h], products);
    }
}
