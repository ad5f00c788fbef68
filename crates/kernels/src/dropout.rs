//! Dropout whose mask is a pure function of a random stream and the position of an element.

use burn::tensor::{Tensor, TensorData};

use crate::CounterRng;

/// Selects the elements to drop (Srivastava et al. 2014): each with probability `rate`; the others
/// are scaled by `1 / (1 - rate)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutMask {
    /// The random stream.
    pub rng: CounterRng,
    /// Probability of dropping an element, in [0, 1).
    pub rate: f64,
    /// Stream position of the tensor's first element.
    pub offset: u64,
}

/// Sets the elements selected by `mask` to 0 and scales the others.
pub fn dropout<const D: usize>(x: Tensor<D>, mask: DropoutMask) -> Tensor<D> {
    if mask.rate == 0.0 {
        return x;
    }
    #[cfg(feature = "flex")]
    if crate::fused::is_flex_f32(&x) {
        let shape = x.dims();
        return crate::fused::apply(fast::Dropout(mask), [x.into()], shape);
    }
    #[cfg(feature = "gpu")]
    if crate::gpu::is_gpu_f32(&x) {
        let draws = crate::gpu::dropout::Draws::new(mask.rng, mask.rate, mask.offset);
        return crate::gpu::apply(crate::gpu::dropout::Dropout(draws), [x.into()]);
    }
    let shape = x.dims();
    let factors = mask.factors(shape.iter().product());
    let device = x.device();
    let mask = Tensor::<D>::from_data(TensorData::new(factors, shape), &device);
    x.clone() * mask.cast(x.dtype())
}

impl DropoutMask {
    /// The factors of `len` elements: 0 or `1 / (1 - rate)`.
    pub(crate) fn factors(&self, len: usize) -> Vec<f32> {
        let scale = (1.0 / (1.0 - self.rate)) as f32;
        // Each 64-bit draw serves two elements: 32 bits resolve any rate that matters.
        let threshold = (self.rate * 4_294_967_296.0) as u64;
        (self.offset..self.offset + len as u64)
            .map(|position| {
                let bits = self.rng.at(position / 2) >> (32 * (position % 2)) & 0xFFFF_FFFF;
                if bits < threshold { 0.0 } else { scale }
            })
            .collect()
    }
}

#[cfg(feature = "flex")]
pub(crate) mod fast {
    use super::DropoutMask;
    use crate::cpu::dropout as kernel;
    use crate::fused::{BackwardContext, Buffer, Op};

    impl DropoutMask {
        pub(crate) fn kernel(&self) -> kernel::Mask {
            kernel::Mask {
                key: self.rng.key(),
                rate: self.rate,
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Dropout(pub(super) DropoutMask);

    impl Dropout {
        fn masked(&self, x: &[f32]) -> Buffer {
            let mut y = Buffer::new(x.len());
            kernel::apply(self.0.kernel(), self.0.offset, x, &mut y);
            y
        }
    }

    impl Op<1> for Dropout {
        type Saved = ();
        const SAVES_INPUT: [bool; 1] = [false];

        fn forward(&self, [x]: [&[f32]; 1], _needs_grad: [bool; 1]) -> (Buffer, ()) {
            (self.masked(x), ())
        }

        fn backward(&self, ctx: BackwardContext<'_, (), 1>) -> [Option<Buffer>; 1] {
            [Some(self.masked(ctx.grad))]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(offset: u64, rate: f64, len: usize) -> Vec<f32> {
        let rng = CounterRng::new(1);
        DropoutMask { rng, rate, offset }.factors(len)
    }

    #[test]
    fn micro_batch_masks_match_the_full_batch_mask() {
        let parts = [mask(0, 0.3, 25), mask(25, 0.3, 35)].concat();
        assert_eq!(mask(0, 0.3, 60), parts);
    }

    #[test]
    fn drop_rate_and_mean_are_as_configured() {
        let factors = mask(0, 0.2, 100_000);
        let zeros = factors.iter().filter(|v| **v == 0.0).count() as f64 / 1e5;
        let mean = factors.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        assert!((zeros - 0.2).abs() < 0.01 && (mean - 1.0).abs() < 0.01);
    }
}
