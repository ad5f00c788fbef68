//! Integer dot products of a block of weights with a block of activations.

use super::activation::ActivationBlock;
use super::{Bits, GROUPS, Line, PANEL};
use crate::cpu::isa::Isa;

/// Returns the dot products of sixteen columns with one row, including the offset of the weights.
///
/// # Safety
/// The machine must support the function's instruction set.
pub(super) type DotFn = unsafe fn(lines: &[Line], x: &ActivationBlock) -> [i32; PANEL];

/// Returns the kernel for a level below VNNI.
pub(super) fn dot_kernel(isa: Isa, bits: Bits) -> DotFn {
    #[cfg(target_arch = "x86_64")]
    if isa.clamp_to_current() >= Isa::Avx2 {
        return match bits {
            Bits::Int8 => super::dot_x86::int8_avx2,
            Bits::Int4 => super::dot_x86::int4_avx2,
        };
    }
    let _ = isa;
    match bits {
        Bits::Int8 => int8,
        Bits::Int4 => int4,
    }
}

/// 8-bit weights, in plain Rust.
fn int8(lines: &[Line], x: &ActivationBlock) -> [i32; PANEL] {
    let mut sums = [0; PANEL];
    for g in 0..GROUPS {
        add_group(&mut sums, &lines[g].0, &x.integers[4 * g..]);
    }
    sums
}

/// 4-bit weights, in plain Rust.
fn int4(lines: &[Line], x: &ActivationBlock) -> [i32; PANEL] {
    let mut sums = [0; PANEL];
    for g in 0..GROUPS / 2 {
        let low = lines[g].0.map(|v| v & 15);
        let high = lines[g].0.map(|v| v >> 4);
        add_group(&mut sums, &low, &x.integers[8 * g..]);
        add_group(&mut sums, &high, &x.integers[8 * g + 4..]);
    }
    sums
}

/// Adds the products of four values along k for sixteen columns.
#[inline(always)]
fn add_group(sums: &mut [i32; PANEL], weights: &[u8; 64], x: &[i16]) {
    let x = [0, 1, 2, 3].map(|t| i32::from(x[t]));
    for (sum, w) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
        for t in 0..4 {
            *sum += i32::from(w[t]) * x[t];
        }
    }
}
