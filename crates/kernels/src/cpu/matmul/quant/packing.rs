//! How the integers of a block are packed into cache lines.
//!
//! A line with `width` bits per integer contains `8 / width` groups of four values along k, the first one in the
//! lowest bits. Integers of 3, 5 and 6 bits have their 2 or 4 low bits in the first lines, and their high bits in
//! lines of their own. Each format thus has as many lines as bits.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use core::arch::x86_64::*;

use super::format::NONLINEAR;
use super::{BLOCK, BlockFormat, GROUPS, Line};

/// The width of the low part and of the high part of integers of `bits` bits.
#[inline(always)]
pub(super) const fn widths(bits: usize) -> (usize, usize) {
    match bits {
        2 | 4 | 8 => (bits, 0),
        3 => (2, 1),
        _ => (4, bits - 4),
    }
}

/// The bytes of one column in each line of a block.
type Words = [[u8; 4]; GROUPS];

/// Calls `$function` with one of the widths that formats have, as a constant.
macro_rules! with_constant {
    ($bits:expr, $function:ident, $($argument:expr),+) => {
        match $bits {
            2 => $function(2, $($argument),+),
            3 => $function(3, $($argument),+),
            4 => $function(4, $($argument),+),
            5 => $function(5, $($argument),+),
            6 => $function(6, $($argument),+),
            _ => $function(8, $($argument),+),
        }
    };
}

/// Packs the integers of a column. Lines that the format does not have are zero.
pub(super) fn pack(bits: usize, integers: &[u8; BLOCK]) -> Words {
    with_constant!(bits, pack_integers, integers)
}

#[inline(always)]
fn pack_integers(bits: usize, integers: &[u8; BLOCK]) -> Words {
    let (low, high) = widths(bits);
    let mut words = [[0; 4]; GROUPS];
    let mut add = |first: usize, width: usize, right: usize| {
        let (per_line, mask) = (8 / width, 0xff >> (8 - width));
        for (i, integer) in integers.iter().enumerate() {
            let (group, t) = (i / 4, i % 4);
            let part = (integer >> right) & mask;
            words[first + group / per_line][t] |= part << (group % per_line * width);
        }
    };
    add(0, low, 0);
    if high > 0 {
        add(low, high, low);
    }
    words
}

/// Returns the integers of a column: the inverse of [`pack`].
pub(super) fn unpack_column(bits: usize, words: &Words) -> [u8; BLOCK] {
    with_constant!(bits, unpack_words, words)
}

#[inline(always)]
fn unpack_words(bits: usize, words: &Words) -> [u8; BLOCK] {
    let mut integers = [0; BLOCK];
    for (i, integer) in integers.iter_mut().enumerate() {
        *integer = integer_at(bits, i / 4, |line| words[line][i % 4]);
    }
    integers
}

/// Returns an integer of group `group` from the byte that it has in each line.
#[inline(always)]
pub(super) fn integer_at(bits: usize, group: usize, byte: impl Fn(usize) -> u8) -> u8 {
    let (low, high) = widths(bits);
    let part = |first: usize, width: usize| {
        let per_line = 8 / width;
        byte(first + group / per_line) >> (group % per_line * width) & (0xff >> (8 - width))
    };
    if high == 0 {
        part(0, low)
    } else {
        part(0, low) | part(low, high) << low
    }
}

/// Unpacks a block to one byte per integer, for formats with less than 8 bits. Integers that select values of a
/// table are replaced with these.
#[inline(always)]
pub(super) fn unpack_lines(format: BlockFormat, lines: &[Line]) -> [Line; GROUPS] {
    let mut unpacked = with_constant!(format.lines(), unpack_integers, lines);
    if format.has_table() {
        for line in &mut unpacked {
            line.0 = line.0.map(|index| NONLINEAR[usize::from(index & 15)]);
        }
    }
    unpacked
}

#[inline(always)]
fn unpack_integers(bits: usize, lines: &[Line]) -> [Line; GROUPS] {
    let (low, high) = widths(bits);
    let part = |line: &mut Line, group: usize, first: usize, width: usize, left: usize| {
        let per_line = 8 / width;
        let (from, right) = (&lines[first + group / per_line], group % per_line * width);
        let mask = 0xff >> (8 - width);
        for (to, byte) in line.0.iter_mut().zip(from.0) {
            *to |= (byte >> right & mask) << left;
        }
    };
    let mut unpacked = [Line([0; 64]); GROUPS];
    for (group, line) in unpacked.iter_mut().enumerate() {
        part(line, group, 0, low, 0);
        if high > 0 {
            part(line, group, low, high, low);
        }
    }
    unpacked
}

/// As [`unpack_lines`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn unpack_lines_avx2(format: BlockFormat, lines: &[Line]) -> [Line; GROUPS] {
    let mut unpacked = with_constant!(format.lines(), unpack_integers, lines);
    if format.has_table() {
        // SAFETY: the table has 16 bytes, and a line 64.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(NONLINEAR.as_ptr().cast()));
            for line in &mut unpacked {
                for half in line.0.as_chunks_mut::<32>().0 {
                    let at = half.as_mut_ptr().cast();
                    _mm256_storeu_si256(at, _mm256_shuffle_epi8(table, _mm256_loadu_si256(at)));
                }
            }
        }
    }
    unpacked
}

/// As [`unpack_lines`], for formats of `BITS` bits, with a table or not. 8 bits are one byte already.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn unpack_registers<const BITS: usize, const TABLE: bool>(
    lines: &[Line; BITS],
) -> [__m512i; GROUPS] {
    // Constant groups, so that shifts are instructions and nothing goes through memory.
    [
        unpack_group::<BITS, TABLE, 0>(lines),
        unpack_group::<BITS, TABLE, 1>(lines),
        unpack_group::<BITS, TABLE, 2>(lines),
        unpack_group::<BITS, TABLE, 3>(lines),
        unpack_group::<BITS, TABLE, 4>(lines),
        unpack_group::<BITS, TABLE, 5>(lines),
        unpack_group::<BITS, TABLE, 6>(lines),
        unpack_group::<BITS, TABLE, 7>(lines),
    ]
}

/// Unpacks group `GROUP` of a block.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unpack_group<const BITS: usize, const TABLE: bool, const GROUP: usize>(
    lines: &[Line; BITS],
) -> __m512i {
    let (low, high) = const { widths(BITS) };
    let per_line = 8 / low;
    let line = shift_right(load(&lines[GROUP / per_line]), GROUP % per_line * low);
    let mut group = match low {
        8 => line,
        4 => _mm512_and_si512(line, _mm512_set1_epi8(15)),
        _ => _mm512_and_si512(line, _mm512_set1_epi8(3)),
    };
    if let Some(per_line) = 8_usize.checked_div(high) {
        let line = load(&lines[low + GROUP / per_line]);
        let at = GROUP % per_line * high;
        let shifted = if at >= low {
            shift_right(line, at - low)
        } else {
            shift_left(line, low - at)
        };
        let mask = _mm512_set1_epi8((((1 << high) - 1) << low) as i8);
        // a | (b & c).
        group = _mm512_ternarylogic_epi32::<0b1111_1000>(group, shifted, mask);
    }
    if TABLE {
        // SAFETY: the table has 16 bytes.
        let table = unsafe { _mm_loadu_si128(NONLINEAR.as_ptr().cast()) };
        group = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), group);
    }
    group
}

/// Shifts 16-bit integers: bytes get bits of their neighbors, which are masked out.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shift_right(line: __m512i, by: usize) -> __m512i {
    match by {
        0 => line,
        1 => _mm512_srli_epi16::<1>(line),
        2 => _mm512_srli_epi16::<2>(line),
        3 => _mm512_srli_epi16::<3>(line),
        4 => _mm512_srli_epi16::<4>(line),
        5 => _mm512_srli_epi16::<5>(line),
        _ => _mm512_srli_epi16::<6>(line),
    }
}

/// As [`shift_right`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shift_left(line: __m512i, by: usize) -> __m512i {
    match by {
        1 => _mm512_slli_epi16::<1>(line),
        2 => _mm512_slli_epi16::<2>(line),
        3 => _mm512_slli_epi16::<3>(line),
        _ => _mm512_slli_epi16::<4>(line),
    }
}

/// Loads a line into a register.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(line: &Line) -> __m512i {
    // SAFETY: a line has 64 bytes and their alignment.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}
