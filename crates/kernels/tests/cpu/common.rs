//! Random values and comparisons for all tests.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::unwrap_used
)]

/// A counter-based stream, the one used for `nextword`'s dropout masks.
#[derive(Clone, Copy)]
pub struct Rng(pub u64);

pub fn random_bits(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add((counter + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The dropout factor at a stream position.
pub fn dropout_factor(key: u64, rate: f64, position: u64) -> f64 {
    let bits = random_bits(key, position / 2) >> (32 * (position % 2)) & 0xFFFF_FFFF;
    if bits < (rate * 4_294_967_296.0) as u64 {
        0.0
    } else {
        (1.0 / (1.0 - rate)) as f32 as f64
    }
}

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 += 1;
        random_bits(0x1234_5678, self.0)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A value from `low` to `high`, inclusive.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Returns `len` approximately standard normal values.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| (0..4).map(|_| self.uniform() - 0.5).sum::<f32>() * 1.7)
            .collect()
    }
}

pub fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Panics unless all values agree to `tolerance`, relative to the larger of 1 and their magnitude.
#[track_caller]
pub fn assert_close(got: &[f32], want: &[f64], tolerance: f64, label: &str) {
    assert_eq!(got.len(), want.len(), "{label}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if f64::from(*g) == *w {
            continue;
        }
        let error = (f64::from(*g) - w).abs() / w.abs().max(1.0);
        assert!(
            error <= tolerance,
            "{label}: [{i}] is {g}, not {w} (error {error:e})"
        );
    }
}

/// Runs `work` with one, two and three threads, panics unless all results are bitwise identical,
/// and returns the result.
#[track_caller]
pub fn assert_same_for_any_threads(work: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(&work)
    };
    let one = run(1);
    for threads in [2, 3] {
        let other = run(threads);
        let same = one
            .iter()
            .zip(&other)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(
            same && one.len() == other.len(),
            "{threads} threads differ from one"
        );
    }
    one
}

/// Compares analytic gradients with central differences of `loss` at a few random elements.
#[track_caller]
pub fn check_gradient(
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
        let slope = (up - loss(&perturbed)) / (2.0 * h);
        let error = (slope - gradient[i]).abs() / slope.abs().max(1.0);
        assert!(
            error < 1e-6,
            "{label}: gradient [{i}] is {}, not {slope}",
            gradient[i]
        );
    }
}

/// Error function, by a series without cancellation.
pub fn erf(x: f64) -> f64 {
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
