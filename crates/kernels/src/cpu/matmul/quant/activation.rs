//! Activations quantized to 16-bit integers with a scale per block.
//!
//! With quantized weights, integer products are several times faster than f32 products, and exact.
//! Sixteen bits leave an error of 1/65000 of the largest value of the block, far below the
//! quantization error of the weights. For int8 dot products, each integer is stored as two signed
//! bytes, `256 * high + low`.
//!
//! Rows are stored in groups that one kernel call multiplies: of a group, the first block of each row,
//! then the second, so that a kernel reads one stream.

use super::BLOCK;
use crate::cpu::isa::Isa;
use crate::cpu::par::{self, Shared};

/// Largest integer whose `high` and `low` parts fit in signed bytes.
const MAX_INT: f32 = 127.0 * 256.0 + 127.0;

/// Maximum number of rows in a group.
const GROUP_ROWS: usize = 4;
/// The same for AVX2 without VNNI: the sums of a panel and six rows are twelve of its sixteen registers.
const AVX2_GROUP_ROWS: usize = 6;

/// Quantized rows: a view of scratch memory.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    integers: &'a [Integers],
    scales: &'a [BlockScale],
    blocks: usize,
    sub_blocks: usize,
    pub(crate) rows: usize,
    /// Rows in a group; the last one may have fewer.
    group_rows: usize,
}

/// The blocks of a group of rows: block `b` of row `r` is at `b * stride + r`, and scale `s` of its sub-blocks at
/// `(b * sub_blocks + s) * stride + r`.
#[derive(Clone, Copy)]
pub(crate) struct RowGroup<'a> {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) stride: usize,
    pub(crate) integers: &'a [Integers],
    pub(crate) scales: &'a [BlockScale],
}

/// The integers of a block. With VNNI, four bytes to a word: eight words of high parts, then eight of
/// low parts. Otherwise two 16-bit integers to a word: of every four values, first and third, then
/// second and fourth.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Integers(pub(crate) [i32; BLOCK / 2]);

/// Size of a block's integers and scales in words of scratch.
fn block_words(sub_blocks: usize) -> usize {
    (size_of::<Integers>() + sub_blocks * size_of::<BlockScale>()) / 4
}

/// What belongs to the integers of a sub-block, a part of a block whose weights have the same scale.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct BlockScale {
    /// Value of one integer step: that of the whole block.
    pub(crate) scale: f32,
    /// Sum of the quantized values, by which the minimum of a sub-block of weights is multiplied.
    pub(crate) sum: f32,
    /// Sum of the integers times the offset of the weights.
    pub(crate) correction: i32,
    /// Keeps blocks aligned.
    padding: u32,
}

/// Rows of `k` values, `stride` apart, and offset and sub-blocks of the weights that they are multiplied by.
#[derive(Clone, Copy)]
pub(crate) struct RowsToQuantize<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) count: usize,
    pub(crate) k: usize,
    pub(crate) offset: i32,
    pub(crate) sub_blocks: usize,
}

impl<'a> Activations<'a> {
    /// Returns the number of scratch words needed for `rows` rows of `blocks` blocks with `sub_blocks` each.
    pub(crate) fn words(isa: Isa, rows: usize, blocks: usize, sub_blocks: usize) -> usize {
        rows.next_multiple_of(group_rows(isa, rows)) * blocks * block_words(sub_blocks)
    }

    /// Quantizes rows, for the kernels of `isa`. `words` must be aligned to a cache line.
    #[allow(clippy::cast_ptr_alignment, reason = "the alignment is checked")]
    pub(crate) fn quantize(isa: Isa, rows: RowsToQuantize<'_>, words: &'a mut [u32]) -> Self {
        let (isa, blocks) = (isa.clamp_to_current(), rows.k.div_ceil(BLOCK));
        let group_rows = group_rows(isa, rows.count);
        let (count, sub_blocks) = (
            rows.count.next_multiple_of(group_rows) * blocks,
            rows.sub_blocks,
        );
        assert!(
            words.len() >= count * block_words(sub_blocks)
                && words.as_ptr().cast::<Integers>().is_aligned()
        );
        // SAFETY: the words are enough and aligned; all bit patterns of both types are valid.
        let (integers, scales) = unsafe {
            let integers = words.as_mut_ptr().cast::<Integers>();
            let scales = integers.add(count).cast::<BlockScale>();
            (
                std::slice::from_raw_parts_mut(integers, count),
                std::slice::from_raw_parts_mut(scales, count * sub_blocks),
            )
        };
        let (to_integers, to_scales) = (Shared::new(integers), Shared::new(scales));
        par::for_each(rows.count, 2 * rows.k, |r| {
            let (first, at) = (r / group_rows * group_rows * blocks, r % group_rows);
            // SAFETY: there are `blocks * group_rows` blocks per group, of which each task has those of
            // its own row.
            let target = unsafe {
                Target {
                    integers: to_integers.at(first + at),
                    scales: to_scales.at(first * sub_blocks + at),
                    stride: group_rows,
                    sub_blocks,
                }
            };
            let row = &rows.x[r * rows.stride..][..rows.k];
            // SAFETY: as above; the level has been clamped.
            unsafe { quantize_row(isa, row, rows.offset, &target) };
        });
        Self {
            integers,
            scales,
            blocks,
            sub_blocks,
            rows: rows.count,
            group_rows,
        }
    }

    /// Returns the number of groups of rows.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(self.group_rows)
    }

    /// Returns a group of rows.
    pub(crate) fn group(&self, group: usize) -> RowGroup<'a> {
        let (first, len) = (group * self.group_rows, self.group_rows * self.blocks);
        RowGroup {
            first,
            rows: self.group_rows.min(self.rows - first),
            stride: self.group_rows,
            integers: &self.integers[group * len..][..len],
            scales: &self.scales[group * len * self.sub_blocks..][..len * self.sub_blocks],
        }
    }
}

/// Returns the number of rows in a group: about the same in all groups.
fn group_rows(isa: Isa, rows: usize) -> usize {
    let max = match isa.clamp_to_current() {
        Isa::Avx2 | Isa::Avx512 => AVX2_GROUP_ROWS,
        _ => GROUP_ROWS,
    };
    let groups = rows.div_ceil(max).max(1);
    rows.div_ceil(groups).max(1)
}

/// Where the blocks of a row are written, `stride` apart.
struct Target {
    integers: *mut Integers,
    scales: *mut BlockScale,
    stride: usize,
    /// One or two.
    sub_blocks: usize,
}

/// Quantizes a row, compiled for the machine's instruction set; in the baseline, rounding is a library
/// call.
///
/// # Safety
/// `target` must have a place for each block of the row, which nothing else accesses, and the machine must
/// support `isa`.
unsafe fn quantize_row(isa: Isa, row: &[f32], offset: i32, target: &Target) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn avx512(splits: bool, row: &[f32], offset: i32, target: &Target) {
            // SAFETY: the contract of this function.
            unsafe { quantize_blocks(splits, row, offset, target) };
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2(row: &[f32], offset: i32, target: &Target) {
            // SAFETY: the contract of this function.
            unsafe { quantize_blocks(false, row, offset, target) };
        }
        if isa >= Isa::Avx512 {
            // SAFETY: the contract of this function.
            return unsafe { avx512(isa >= Isa::Avx512Vnni, row, offset, target) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: the contract of this function.
            return unsafe { avx2(row, offset, target) };
        }
    }
    let _ = isa;
    // SAFETY: the contract of this function.
    unsafe { quantize_blocks(false, row, offset, target) };
}

/// Quantizes the blocks of a row.
///
/// # Safety
/// `target` must have a place for each block of the row, which nothing else accesses.
#[inline(always)]
unsafe fn quantize_blocks(splits: bool, row: &[f32], offset: i32, target: &Target) {
    for (b, values) in row.chunks(BLOCK).enumerate() {
        let (integers, scale) = quantize_block(values);
        let (first, second) = integers.split_at(BLOCK / 2);
        let sums = [first.iter().sum::<i32>(), second.iter().sum::<i32>()];
        let integers = if splits {
            split(&integers)
        } else {
            pairs(&integers)
        };
        // SAFETY: the caller guarantees that there is a place for the block and its sub-blocks.
        unsafe {
            target.integers.add(b * target.stride).write(integers);
            let write = |index: usize, sum: i32| {
                let scale = BlockScale {
                    scale,
                    sum: scale * sum as f32,
                    correction: sum * offset,
                    padding: 0,
                };
                target.scales.add(index * target.stride).write(scale);
            };
            if target.sub_blocks == 1 {
                write(b, sums[0] + sums[1]);
            } else {
                write(2 * b, sums[0]);
                write(2 * b + 1, sums[1]);
            }
        }
    }
}

/// Quantizes up to 32 values, zero-padded. Returns the value of one step, too.
#[inline(always)]
fn quantize_block(values: &[f32]) -> ([i32; BLOCK], f32) {
    let mut x = [0.0; BLOCK];
    x[..values.len()].copy_from_slice(values);
    // Bits of non-negative floats compare like integers, with NaN above infinity. Unlike a float
    // maximum, this vectorizes and does not ignore NaN.
    let max_bits = x.iter().fold(0, |a, v| v.abs().to_bits().max(a));
    let max_abs = f32::from_bits(max_bits);
    let finite = max_abs.is_finite();
    if !finite {
        x = [0.0; BLOCK];
    }
    // The inverse of values close to the smallest positive float would overflow; treat them as zero.
    let inverse = if max_abs > f32::MIN_POSITIVE * MAX_INT && finite {
        MAX_INT / max_abs
    } else {
        0.0
    };
    let mut integers = [0_i32; BLOCK];
    for t in 0..BLOCK {
        // The product may exceed `MAX_INT` by a rounding error.
        integers[t] = to_int((x[t] * inverse).clamp(-MAX_INT, MAX_INT));
    }
    let scale = if finite { max_abs / MAX_INT } else { f32::NAN };
    (integers, scale)
}

/// Splits integers into high and low bytes.
#[inline(always)]
fn split(integers: &[i32; BLOCK]) -> Integers {
    let mut bytes = [[0_i8; BLOCK]; 2];
    for t in 0..BLOCK {
        let upper = (integers[t] + 128) >> 8;
        bytes[0][t] = upper as i8;
        bytes[1][t] = (integers[t] - 256 * upper) as i8;
    }
    // SAFETY: both are 64 bytes of plain data.
    unsafe { std::mem::transmute(bytes) }
}

/// Packs integers in pairs.
#[inline(always)]
fn pairs(integers: &[i32; BLOCK]) -> Integers {
    let mut words = [0; BLOCK / 2];
    for g in 0..BLOCK / 4 {
        for t in 0..2 {
            let (low, high) = (integers[4 * g + t], integers[4 * g + t + 2]);
            words[2 * g + t] = low & 0xffff | high << 16;
        }
    }
    Integers(words)
}

/// Rounds a value between `-MAX_INT` and `MAX_INT` to the nearest integer, ties to even.
///
/// Adding 1.5 * 2^23 leaves the integer in the low mantissa bits: two instructions on every target,
/// instead of a dozen for rounding and saturating conversion.
#[inline(always)]
fn to_int(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT)
        .to_bits()
        .wrapping_sub(SHIFT.to_bits())
        .cast_signed()
}
