//! Sum of squares over several arrays, for the global gradient norm.

use pulp::Simd;

use super::par::{self, CHUNK, Shared};
use super::simd::{Ops, dispatch, for_lanes, load_part};

/// Sum of the squares of all elements, accumulated in f64 over fixed chunks in a fixed order.
pub(crate) fn sum_of_squares(arrays: &[&[f32]]) -> f64 {
    by_chunk(arrays).iter().sum()
}

/// The sum of the squares of each chunk of each array.
pub(crate) fn by_chunk(arrays: &[&[f32]]) -> Vec<f64> {
    let chunks: Vec<&[f32]> = arrays
        .iter()
        .flat_map(|array| array.chunks(CHUNK))
        .collect();
    let mut sums = vec![0.0; chunks.len()];
    let sums_ptr = Shared::new(&mut sums);
    par::for_each(chunks.len(), CHUNK, |i| {
        // SAFETY: `i` is below the number of chunks, and each chunk has its own sum.
        unsafe { *sums_ptr.at(i) = chunk(chunks[i]) };
    });
    sums
}

dispatch!(fn chunk(x: &[f32]) -> f64 => body);

/// Independent accumulators, which hide the latency of the additions.
const ACCUMULATORS: usize = 4;

/// Elements per lane accumulated in f32 before widening to f64.
const DEPTH: usize = 16;

#[inline(always)]
fn body<S: Simd>(s: S, x: &[f32]) -> f64 {
    let mut total = 0.0;
    for block in x.chunks(ACCUMULATORS * DEPTH * S::LANES) {
        let (mut acc, from) = ([s.zero(); ACCUMULATORS], block.as_ptr());
        let unrolled = block.len() - block.len() % (ACCUMULATORS * S::LANES);
        for offset in (0..unrolled).step_by(ACCUMULATORS * S::LANES) {
            for (i, sum) in acc.iter_mut().enumerate() {
                // SAFETY: `offset` leaves room for ACCUMULATORS registers.
                let x = unsafe { s.load(from.add(offset + i * S::LANES)) };
                *sum = s.fma(x, x, *sum);
            }
        }
        for_lanes!(s, block.len() - unrolled, |offset, part| {
            // SAFETY: `offset` and `part` stay within the rest of the block.
            let x = unsafe { load_part(s, from, unrolled + offset, part) };
            acc[0] = s.fma(x, x, acc[0]);
        });
        let [a, b, c, d] = acc;
        let sum = s.add_f32s(s.add_f32s(a, b), s.add_f32s(c, d));
        total += f64::from(s.reduce_sum_f32s(sum));
    }
    total
}
