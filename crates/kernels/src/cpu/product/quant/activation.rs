//! Activations as 16-bit integers with a scale for each block.
//!
//! With the weights in int8, integer products are several times faster than f32 ones, and exact.
//! Sixteen bits leave an error of 1/65000 of the largest value of the block: far below what the
//! quantization of the weights costs. A value is kept a second time as two signed bytes,
//! `256 * high + low`, for the dot products of bytes.

use super::{BLOCK, Bits};
use crate::cpu::product::isa::Isa;

/// The largest integer that has a `high` and a `low` part in signed bytes.
const MAX: f32 = 127.0 * 256.0 + 127.0;

/// Quantized rows; a view of scratch memory.
#[derive(Clone, Copy)]
pub(crate) struct Activations<'a> {
    words: &'a [u32],
    blocks: usize,
}

/// Words of a block: 32 i16, 32 high bytes, 32 low bytes, the scale and the correction.
const WORDS: usize = 16 + 8 + 8 + 2;

/// One block of a row.
#[repr(C)]
pub(crate) struct ActivationBlock {
    /// The integers.
    pub(crate) whole: [i16; BLOCK],
    /// Their high parts, four bytes a word.
    pub(crate) high: [i32; BLOCK / 4],
    /// Their low parts.
    pub(crate) low: [i32; BLOCK / 4],
    /// The value of one.
    pub(crate) scale: f32,
    /// The sum of the integers times the offset of the weights.
    pub(crate) correction: i32,
}

const _: () = assert!(size_of::<ActivationBlock>() == WORDS * 4);

impl<'a> Activations<'a> {
    /// The scratch words that `rows` rows of `blocks` blocks need.
    pub(crate) fn words(rows: usize, blocks: usize) -> usize {
        rows * blocks * WORDS
    }

    /// Quantizes rows of `k` values that start `stride` apart.
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
            &Rows {
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

    /// A block of a row.
    #[inline(always)]
    pub(crate) fn block(&self, row: usize, block: usize) -> &ActivationBlock {
        let at = (row * self.blocks + block) * WORDS;
        // SAFETY: `quantize` has written a block there.
        unsafe { &*self.words[at..at + WORDS].as_ptr().cast() }
    }
}

/// `quantize_rows` compiled for the machine: rounding is a library call in the baseline.
fn dispatch(isa: Isa, job: &Rows<'_>, words: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512(job: &Rows<'_>, words: &mut [u32]) {
            job.quantize(words);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(job: &Rows<'_>, words: &mut [u32]) {
            job.quantize(words);
        }
        let isa = isa.clamp_to_machine();
        if isa >= Isa::Avx512 {
            // SAFETY: the machine has the features of the level.
            return unsafe { avx512(job, words) };
        }
        if isa >= Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2(job, words) };
        }
    }
    let _ = isa;
    job.quantize(words);
}

/// The rows to quantize.
struct Rows<'a> {
    x: &'a [f32],
    stride: usize,
    count: usize,
    k: usize,
    bits: Bits,
}

impl Rows<'_> {
    #[inline(always)]
    fn quantize(&self, words: &mut [u32]) {
        let blocks = self.k.div_ceil(BLOCK);
        for r in 0..self.count {
            let row = &self.x[r * self.stride..][..self.k];
            for (b, values) in row.chunks(BLOCK).enumerate() {
                let at = (r * blocks + b) * WORDS;
                let block = quantize_block(values, self.bits);
                // SAFETY: `WORDS` words are exactly as large as a block and aligned alike;
                // both are plain data.
                unsafe {
                    words[at..at + WORDS]
                        .as_mut_ptr()
                        .cast::<ActivationBlock>()
                        .write(block);
                }
            }
        }
    }
}

/// Quantizes up to 32 values; missing ones are zero.
#[inline(always)]
fn quantize_block(values: &[f32], bits: Bits) -> ActivationBlock {
    let mut x = [0.0; BLOCK];
    x[..values.len()].copy_from_slice(values);
    // The bits of positive floats order like integers, with NaN at the top: unlike the float
    // maximum this one vectorises and does not pass over NaN.
    let largest = x.iter().fold(0, |a, v| v.abs().to_bits().max(a));
    let largest = f32::from_bits(largest);
    let finite = largest.is_finite();
    if !finite {
        x = [0.0; BLOCK];
    }
    // Of numbers near the smallest that there are the inverse would overflow: they count as zeros.
    let inverse = if largest > f32::MIN_POSITIVE * MAX && finite {
        MAX / largest
    } else {
        0.0
    };
    let (mut whole, mut high, mut low) = ([0_i32; BLOCK], [0_i8; BLOCK], [0_i8; BLOCK]);
    for t in 0..BLOCK {
        // The product may exceed `MAX` by a rounding error.
        whole[t] = to_int((x[t] * inverse).clamp(-MAX, MAX));
        let upper = (whole[t] + 128) >> 8;
        high[t] = upper as i8;
        low[t] = (whole[t] - 256 * upper) as i8;
    }
    ActivationBlock {
        whole: whole.map(|v| v as i16),
        high: words(high),
        low: words(low),
        scale: if finite { largest / MAX } else { f32::NAN },
        correction: whole.iter().sum::<i32>() * bits.offset(),
    }
}

/// Rounds a value between `-MAX` and `MAX` to the nearest integer, ties to even.
///
/// Adding 1.5 * 2^23 leaves the integer in the low bits: two instructions everywhere, where
/// the library's rounding and saturating conversion take a dozen.
#[inline(always)]
fn to_int(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT)
        .to_bits()
        .wrapping_sub(SHIFT.to_bits())
        .cast_signed()
}

/// Bytes in words.
#[inline(always)]
fn words(bytes: [i8; BLOCK]) -> [i32; BLOCK / 4] {
    // SAFETY: both are 32 bytes of plain data.
    unsafe { std::mem::transmute(bytes) }
}
