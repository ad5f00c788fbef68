//! Activations quantized to 16-bit integers with a scale per block.
//!
//! With int8 weights, integer products are several times faster than f32 products, and exact.
//! Sixteen bits leave an error of 1/65000 of the largest value of the block, far below the
//! quantization error of the weights. Each integer is also stored as two signed bytes,
//! `256 * high + low`, for int8 dot products.

use super::{BLOCK, Bits};
use crate::cpu::isa::Isa;

/// Largest integer whose `high` and `low` parts fit in signed bytes.
const MAX_INT: f32 = 127.0 * 256.0 + 127.0;

/// Quantized rows: a view of scratch memory.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    words: &'a [u32],
    blocks: usize,
}

/// Size of a block in words: 32 i16, 32 high bytes, 32 low bytes, the scale and the correction.
const BLOCK_WORDS: usize = 16 + 8 + 8 + 2;

/// One block of a row.
#[repr(C)]
pub(crate) struct ActivationBlock {
    /// The quantized values.
    pub(crate) integers: [i16; BLOCK],
    /// High parts, four bytes per word.
    pub(crate) high: [i32; BLOCK / 4],
    /// Low parts, four bytes per word.
    pub(crate) low: [i32; BLOCK / 4],
    /// Value of one integer step.
    pub(crate) scale: f32,
    /// Sum of the integers times the offset of the weights.
    pub(crate) correction: i32,
}

const _: () = assert!(size_of::<ActivationBlock>() == BLOCK_WORDS * 4);

impl<'a> Activations<'a> {
    /// Returns the number of scratch words needed for `rows` rows of `blocks` blocks.
    pub(crate) fn words(rows: usize, blocks: usize) -> usize {
        rows * blocks * BLOCK_WORDS
    }

    /// Quantizes rows of `k` values, `stride` apart.
    pub(crate) fn quantize(
        isa: Isa,
        x: &[f32],
        stride: usize,
        rows: usize,
        k: usize,
        bits: Bits,
        words: &'a mut [u32],
    ) -> Self {
        let blocks = k.div_ceil(BLOCK);
        dispatch(
            isa,
            &QuantizeJob {
                x,
                stride,
                count: rows,
                k,
                bits,
            },
            words,
        );
        Self { words, blocks }
    }

    /// Returns a block of a row.
    #[inline(always)]
    pub(crate) fn block(&self, row: usize, block: usize) -> &ActivationBlock {
        let start = (row * self.blocks + block) * BLOCK_WORDS;
        // SAFETY: `quantize` has written a block at this offset.
        unsafe { &*self.words[start..start + BLOCK_WORDS].as_ptr().cast() }
    }
}

/// Runs `QuantizeJob::quantize` compiled for the machine's instruction set; in the baseline, rounding
/// is a library call.
fn dispatch(isa: Isa, job: &QuantizeJob<'_>, words: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512(job: &QuantizeJob<'_>, words: &mut [u32]) {
            job.quantize(words);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(job: &QuantizeJob<'_>, words: &mut [u32]) {
            job.quantize(words);
        }
        let isa = isa.clamp_to_current();
        if isa >= Isa::Avx512 {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level.
            return unsafe { avx512(job, words) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: `clamp_to_current` ensures that the machine supports the level.
            return unsafe { avx2(job, words) };
        }
    }
    let _ = isa;
    job.quantize(words);
}

/// The rows to quantize.
struct QuantizeJob<'a> {
    x: &'a [f32],
    stride: usize,
    count: usize,
    k: usize,
    bits: Bits,
}

impl QuantizeJob<'_> {
    #[inline(always)]
    fn quantize(&self, words: &mut [u32]) {
        let blocks = self.k.div_ceil(BLOCK);
        for r in 0..self.count {
            let row = &self.x[r * self.stride..][..self.k];
            for (b, values) in row.chunks(BLOCK).enumerate() {
                let start = (r * blocks + b) * BLOCK_WORDS;
                let block = quantize_block(values, self.bits);
                // SAFETY: `BLOCK_WORDS` words have the size and alignment of a block, and both are
                // plain data.
                unsafe {
                    words[start..start + BLOCK_WORDS]
                        .as_mut_ptr()
                        .cast::<ActivationBlock>()
                        .write(block);
                }
            }
        }
    }
}

/// Quantizes up to 32 values, zero-padded.
#[inline(always)]
fn quantize_block(values: &[f32], bits: Bits) -> ActivationBlock {
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
    let (mut integers, mut high, mut low) = ([0_i32; BLOCK], [0_i8; BLOCK], [0_i8; BLOCK]);
    for t in 0..BLOCK {
        // The product may exceed `MAX_INT` by a rounding error.
        integers[t] = to_int((x[t] * inverse).clamp(-MAX_INT, MAX_INT));
        let upper = (integers[t] + 128) >> 8;
        high[t] = upper as i8;
        low[t] = (integers[t] - 256 * upper) as i8;
    }
    ActivationBlock {
        integers: integers.map(|v| v as i16),
        high: words(high),
        low: words(low),
        scale: if finite { max_abs / MAX_INT } else { f32::NAN },
        correction: integers.iter().sum::<i32>() * bits.offset(),
    }
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

/// Reinterprets bytes as words.
#[inline(always)]
fn words(bytes: [i8; BLOCK]) -> [i32; BLOCK / 4] {
    // SAFETY: both are 32 bytes of plain data.
    unsafe { std::mem::transmute(bytes) }
}
