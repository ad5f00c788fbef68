//! Dropout whose mask is a pure function of a key and the position of an element.

use nextword_base::rng::{GOLDEN_GAMMA, mix};
use pulp::Simd;

use super::par::{self, Shared};
use super::simd::{dispatch, for_lanes, load_part, store_part};

/// Which elements to drop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mask {
    /// Key of a counter-based random stream.
    pub(crate) key: u64,
    /// Probability of dropping an element, in [0, 1).
    pub(crate) rate: f64,
}

impl Mask {
    /// An element is dropped if its 32 random bits are below this threshold.
    pub(crate) fn threshold(&self) -> u32 {
        assert!(
            (0.0..1.0).contains(&self.rate),
            "the dropout rate must be in [0, 1)"
        );
        (self.rate * 4_294_967_296.0) as u32
    }

    /// Factor on the remaining elements, `1 / (1 - rate)`.
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.rate)) as f32
    }

    /// The input of [`mix`] for a draw, which serves stream positions `2 * draw` and `2 * draw + 1`
    /// with its low and high half. Adding a multiple of [`GOLDEN_GAMMA`] leads to later draws.
    #[inline(always)]
    pub(crate) fn draw_input(&self, draw: u64) -> u64 {
        self.key
            .wrapping_add(draw.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA))
    }
}

/// `out = x * mask`, with the mask of stream positions from `offset` on. Used in the forward and
/// the backward pass.
pub(crate) fn apply(mask: Mask, offset: u64, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let out_ptr = Shared::new(out);
    par::for_each_chunk(x.len(), out_ptr.as_ptr(), |start, n| {
        // SAFETY: chunks are within `out` and do not overlap.
        let out = unsafe { out_ptr.slice(start, n) };
        chunk(
            mask,
            offset.wrapping_add(start as u64),
            &x[start..start + n],
            out,
        );
    });
}

dispatch!(fn chunk(mask: Mask, offset: u64, x: &[f32], out: &mut [f32]) => chunk_body);

/// Random draws per block; each draw serves two elements.
const DRAWS: usize = 32;

#[inline(always)]
fn chunk_body<S: Simd>(s: S, mask: Mask, offset: u64, x: &[f32], out: &mut [f32]) {
    let len = x.len().min(out.len());
    let (threshold, scale) = (mask.threshold(), mask.scale());
    let mut draw = offset / 2;
    let mut start = 0;
    // An odd position uses the second half of its draw.
    let mut skip = (offset % 2) as usize;
    while start < len {
        let factors = factors(mask, draw, threshold, scale);
        let n = (2 * DRAWS - skip).min(len - start);
        for_lanes!(s, n, |i, part| {
            // SAFETY: `start + i` stays below `len`, the length of the shorter slice, and `skip + i`
            // within `factors`.
            unsafe {
                let factor = load_part(s, factors.as_ptr().add(skip), i, part);
                let y = s.mul_f32s(factor, load_part(s, x.as_ptr(), start + i, part));
                store_part(s, out.as_mut_ptr(), start + i, part, y);
            }
        });
        (draw, start, skip) = (draw.wrapping_add(DRAWS as u64), start + n, 0);
    }
}

/// The factors of the positions from `2 * draw` on.
///
/// Plain loops over arrays: the compiler uses the 64-bit multiplies of AVX-512, or emulates them.
#[inline(always)]
fn factors(mask: Mask, draw: u64, threshold: u32, scale: f32) -> [f32; 2 * DRAWS] {
    let base = mask.draw_input(draw);
    let mut bits = [0; DRAWS];
    for (i, bits) in bits.iter_mut().enumerate() {
        *bits = mix(base.wrapping_add((i as u64).wrapping_mul(GOLDEN_GAMMA)));
    }
    let mut factors = [0.0; 2 * DRAWS];
    for (pair, bits) in factors.as_chunks_mut::<2>().0.iter_mut().zip(bits) {
        pair[0] = if (bits as u32) < threshold {
            0.0
        } else {
            scale
        };
        pair[1] = if ((bits >> 32) as u32) < threshold {
            0.0
        } else {
            scale
        };
    }
    factors
}
