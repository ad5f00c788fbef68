//! Quantized weights on a device: integers and scales as they are in a file, in words of 32 bits.

use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

use crate::cpu::matmul::quant::{BLOCK, Bits, BlockFormat, QuantMatrix};
use crate::gpu::launch::upload;

/// Copies of a weight on devices, made at first use.
#[derive(Debug, Default)]
pub(crate) struct DeviceCopies(Mutex<Vec<(CubeDevice, Packed)>>);

impl DeviceCopies {
    /// The copy of `weight` on the device of `like`.
    pub(super) fn get(&self, weight: &QuantMatrix, like: &CubeTensor) -> Packed {
        let mut copies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, packed)) = copies.iter().find(|(of, _)| *of == like.device) {
            return packed.clone();
        }
        let packed = Packed::new(weight, like);
        copies.push((like.device.clone(), packed.clone()));
        packed
    }
}

/// A quantized matrix, column by column.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// The integers of each block, unsigned, the first in the lowest bits, `[d_out, blocks, words]`.
    pub(super) words: CubeTensor,
    /// The scale of each block in the low half of a word and its minimum in the other, `[d_out, blocks]`.
    pub(super) factors: CubeTensor,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    pub(super) layout: Layout,
}

/// How values follow from integers, for kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) bits: usize,
    /// Subtracted from the unsigned integers.
    pub(super) offset: usize,
    /// Whether scales and minimums are f16, and not bf16.
    pub(super) is_f16: bool,
    pub(super) has_minimum: bool,
}

impl Layout {
    fn new(format: BlockFormat) -> Self {
        Self {
            bits: usize::from(format.bits()),
            offset: format.offset().unsigned_abs() as usize,
            is_f16: format.has_f16_scales(),
            has_minimum: format.has_minimum(),
        }
    }
}

impl Packed {
    fn new(weight: &QuantMatrix, like: &CubeTensor) -> Self {
        let ((d_in, d_out), layout) = (weight.shape(), Layout::new(weight.format()));
        Self {
            words: upload(like, &words(weight, layout)),
            factors: upload(like, &factors(weight)),
            d_in,
            d_out,
            layout,
        }
    }
}

/// The integers, with zeros after the last row of a column.
fn words(weight: &QuantMatrix, layout: Layout) -> Vec<u32> {
    let (d_in, d_out) = weight.shape();
    let stored = weight.stored_integers();
    // Only formats with separate integers are copied to devices.
    let bits = weight.format().separate_integers().unwrap_or(Bits::Int8);
    let column_bytes = bits.stored_bytes(d_in);
    let column_words = weight.blocks() * BLOCK * layout.bits / 32;
    // 8-bit integers are signed in files.
    let sign_bits = if layout.bits == 8 { 0x8080_8080 } else { 0 };
    let mut words = Vec::with_capacity(d_out * column_words);
    for column in stored.chunks(column_bytes.max(1)).take(d_out) {
        let word = |bytes: &[u8]| {
            let mut padded = [0; 4];
            padded[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(padded) ^ sign_bits
        };
        words.extend(column.chunks(4).map(word));
        words.resize(words.len().next_multiple_of(column_words.max(1)), 0);
    }
    words
}

fn factors(weight: &QuantMatrix) -> Vec<u32> {
    let (scales, minimums) = (weight.stored_scales(), weight.stored_minimums());
    let halves = |bytes: &[u8]| -> Vec<u32> {
        let pairs = bytes.as_chunks::<2>().0.iter();
        pairs
            .map(|half| u32::from(u16::from_le_bytes(*half)))
            .collect()
    };
    let (mut factors, minimums) = (halves(&scales), halves(&minimums));
    for (factor, minimum) in factors.iter_mut().zip(minimums) {
        *factor |= minimum << 16;
    }
    factors
}
