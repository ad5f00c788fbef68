//! Dropout with the bits of the CPU's masks, which are computed in the kernel.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use nextword_base::rng::GOLDEN_GAMMA;

use super::apply::{BackwardContext, Op};
use super::launch::{buffer, empty_like, len, per_element};
use crate::CounterRng;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout(pub(crate) Draws);

impl Dropout {
    fn masked(self, x: &CubeTensor) -> CubeTensor {
        let y = empty_like(x);
        if let Some((cubes, units)) = per_element(x, len(x)) {
            let (x_arg, y_arg) = (buffer(x), buffer(&y));
            dropout::launch(&x.client, cubes, units, x_arg, y_arg, self.0.launch_arg());
        }
        y
    }
}

impl Op<1> for Dropout {
    type Saved = ();
    const SAVES_INPUT: [bool; 1] = [false];

    fn forward(&self, [x]: [&CubeTensor; 1], _: [bool; 1]) -> (CubeTensor, ()) {
        (self.masked(x), ())
    }

    fn backward(&self, ctx: BackwardContext<(), 1>) -> [Option<CubeTensor>; 1] {
        [Some(self.masked(&ctx.grad))]
    }
}

/// The random stream of a mask as arguments of a kernel. 64-bit numbers are halves, the low one first,
/// since shader languages may lack them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    key: u64,
    offset: u64,
    threshold: u32,
    scale: f32,
}

impl Draws {
    /// Element 0 has stream position `offset`.
    pub(crate) fn new(rng: CounterRng, rate: f64, offset: u64) -> Self {
        let mask = crate::cpu::dropout::Mask {
            key: rng.key(),
            rate,
        };
        Self {
            key: mask.key,
            offset,
            threshold: mask.threshold(),
            scale: mask.scale(),
        }
    }

    pub(super) fn launch_arg(self) -> StreamLaunch {
        let halves = |value: u64| (value as u32, (value >> 32) as u32);
        let ((key_low, key_high), (offset_low, offset_high)) =
            (halves(self.key), halves(self.offset));
        StreamLaunch::new(
            key_low,
            key_high,
            offset_low,
            offset_high,
            self.threshold,
            self.scale,
        )
    }
}

/// [`Draws`] in a kernel.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Stream {
    key_low: u32,
    key_high: u32,
    offset_low: u32,
    offset_high: u32,
    threshold: u32,
    scale: f32,
}

#[cube(launch)]
fn dropout(x: &[f32], y: &mut [f32], stream: Stream) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        y[i] = x[i] * dropout_factor(&stream, i as u32, 0u32);
    }
}

/// The factor of an element: 0 or `1 / (1 - rate)`. Its index has two halves, too.
#[cube]
pub(super) fn dropout_factor(stream: &Stream, index_low: u32, index_high: u32) -> f32 {
    let low = stream.offset_low + index_low;
    let high = stream.offset_high + index_high + carry(low, index_low);
    // Each 64-bit draw serves two elements.
    let draw_low = (low >> 1) | (high << 31);
    let draw_high = high >> 1;
    let next_low = draw_low + 1u32;
    let next_high = draw_high + carry(next_low, 1u32);
    let (step_low, step_high) = multiply(
        next_low,
        next_high,
        comptime!(GOLDEN_GAMMA as u32),
        comptime!((GOLDEN_GAMMA >> 32) as u32),
    );
    let sum_low = stream.key_low + step_low;
    let sum_high = stream.key_high + step_high + carry(sum_low, step_low);
    let (bits_low, bits_high) = mix(sum_low, sum_high);
    let bits = select(low & 1u32 == 0u32, bits_low, bits_high);
    select(bits < stream.threshold, 0.0f32, stream.scale)
}

/// 1 if a sum of 32 bits, of which `part` is one part, has wrapped around.
#[cube]
fn carry(sum: u32, part: u32) -> u32 {
    select(sum < part, 1u32, 0u32)
}

/// The low 64 bits of a product.
#[cube]
fn multiply(
    a_low: u32,
    a_high: u32,
    #[comptime] b_low: u32,
    #[comptime] b_high: u32,
) -> (u32, u32) {
    let (low, other) = (b_low.runtime(), b_high.runtime());
    let high = a_low.mul_hi(low) + a_low * other + a_high * low;
    (a_low * low, high)
}

/// `nextword_base::rng::mix`.
#[cube]
fn mix(low: u32, high: u32) -> (u32, u32) {
    let (low, high) = (low ^ ((low >> 30) | (high << 2)), high ^ (high >> 30));
    let (low, high) = multiply(low, high, 0x1CE4_E5B9u32, 0xBF58_476Du32);
    let (low, high) = (low ^ ((low >> 27) | (high << 5)), high ^ (high >> 27));
    let (low, high) = multiply(low, high, 0x1331_11EBu32, 0x94D0_49BBu32);
    (low ^ ((low >> 31) | (high << 1)), high ^ (high >> 31))
}
