//! Random values and comparisons for the tests of all kernels.

use nextword_base::CounterRng;
use nextword_base::rng::{GOLDEN_GAMMA, mix};

use super::par::with_threads;

/// A sequence of random values.
#[derive(Clone, Copy)]
pub(crate) struct Rng(pub(crate) u64);

/// The dropout factor at a stream position.
pub(crate) fn dropout_factor(key: u64, rate: f64, position: u64) -> f64 {
    let draw = mix(key.wrapping_add((position / 2 + 1).wrapping_mul(GOLDEN_GAMMA)));
    let bits = draw >> (32 * (position % 2)) & 0xFFFF_FFFF;
    if bits < (rate * 4_294_967_296.0) as u64 {
        0.0
    } else {
        f64::from((1.0 / (1.0 - rate)) as f32)
    }
}

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 += 1;
        CounterRng::new(0x1234_5678).at(self.0)
    }

    /// An integer below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// An integer from `low` to `high`, inclusive.
    pub(crate) fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Returns `len` approximately standard normal values.
    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.7)
            .collect()
    }
}

pub(crate) fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The permitted error of an element: `absolute`, plus `relative` times its magnitude.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    relative: f64,
    absolute: f64,
}

impl From<[f64; 2]> for Tolerance {
    /// Relative and absolute.
    fn from([relative, absolute]: [f64; 2]) -> Self {
        Self { relative, absolute }
    }
}

impl From<f64> for Tolerance {
    /// For values of about one, whose errors come from sums of such values.
    fn from(tolerance: f64) -> Self {
        Self {
            relative: tolerance,
            absolute: tolerance,
        }
    }
}

/// Panics unless every value agrees to `tolerance`.
#[track_caller]
pub(crate) fn assert_close(
    got: &[f32],
    want: &[f64],
    tolerance: impl Into<Tolerance>,
    label: &str,
) {
    assert_eq!(got.len(), want.len(), "{label}: lengths");
    let Tolerance { relative, absolute } = tolerance.into();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let g = f64::from(*g);
        if g.to_bits() == w.to_bits() {
            continue;
        }
        let error = (g - w).abs();
        assert!(
            error <= absolute + relative * w.abs(),
            "{label}: [{i}] is {g}, not {w} (error {error:e})"
        );
    }
}

/// Runs `work` with one, two and three threads, panics unless all results are bitwise identical,
/// and returns the result.
#[track_caller]
pub(crate) fn assert_same_for_any_threads(work: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let one = with_threads(1, &work);
    for threads in [2, 3] {
        let other = with_threads(threads, &work);
        assert!(
            bits(&one) == bits(&other),
            "{threads} threads differ from one"
        );
    }
    one
}

/// Compares analytic gradients with central differences of `loss` at a few random elements.
#[track_caller]
pub(crate) fn check_gradient(
    rng: &mut Rng,
    x: &[f64],
    gradient: &[f64],
    loss: impl Fn(&[f64]) -> f64,
    label: &str,
) {
    if x.is_empty() {
        return;
    }
    for _ in 0..6 {
        let i = rng.below(x.len());
        let mut perturbed = x.to_vec();
        let h = 1e-5;
        perturbed[i] = x[i] + h;
        let up = loss(&perturbed);
        perturbed[i] = x[i] - h;
        let down = loss(&perturbed);
        let slope = (up - down) / (2.0 * h);
        // Rounding of the loss, divided by the step.
        let rounding = (up.abs() + down.abs()) * f64::EPSILON / h;
        let error = (slope - gradient[i]).abs();
        assert!(
            error <= 1e-6 * slope.abs() + 10.0 * rounding + 1e-8,
            "{label}: gradient [{i}] is {}, not {slope}",
            gradient[i]
        );
    }
}

/// Error function, by a series without cancellation.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
