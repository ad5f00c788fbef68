//! Counter-based random numbers: a pure function of a key and a counter.
//!
//! Resuming needs no saved state: the n-th value of a stream is computed from n. The mixing
//! function is the `SplitMix64` finalizer (Steele, Lea and Flood 2014, "Fast splittable
//! pseudorandom number generators"), applied to key and counter.

/// A stream of random values; `at(i)` is the i-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRng {
    key: u64,
}

/// 2^64 divided by the golden ratio, the increment of `SplitMix64`.
pub(crate) const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl CounterRng {
    /// Creates the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            key: mix(seed ^ 0x6E65_7874_776F_7264),
        }
    }

    /// The key that determines all values of this stream.
    #[cfg(feature = "flex")]
    pub(crate) fn key(self) -> u64 {
        self.key
    }

    /// Derives an independent stream for `id`: `rng.stream(step).stream(layer)`.
    pub fn stream(self, id: u64) -> Self {
        Self {
            key: mix(self.key ^ mix(id.wrapping_add(GOLDEN))),
        }
    }

    /// Derives an independent stream for a name, so that the values of one parameter do not depend
    /// on which others exist.
    pub fn named(self, name: &str) -> Self {
        // FNV-1a: short, stable, and sufficient to distinguish names.
        let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        self.stream(hash)
    }

    /// The `counter`-th 64 random bits.
    pub fn at(self, counter: u64) -> u64 {
        mix(self
            .key
            .wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
    }

    /// The `counter`-th uniform value in [0, 1).
    pub fn uniform(self, counter: u64) -> f64 {
        (self.at(counter) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The `counter`-th standard normal value (Box and Muller 1958).
    pub fn normal(self, counter: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * counter)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * counter + 1)).cos()
    }
}

/// The `SplitMix64` finalizer.
#[allow(clippy::inline_always)] // Part of kernels that are compiled for each instruction set.
#[inline(always)]
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let rng = CounterRng::new(3).named("test");
        let n = 100_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for i in 0..n {
            let x = rng.normal(i);
            sum += x;
            squares += x * x;
        }
        assert!((sum / n as f64).abs() < 0.02);
        assert!((squares / n as f64 - 1.0).abs() < 0.02);
    }

    #[test]
    fn streams_are_distinct_and_reproducible() {
        let rng = CounterRng::new(3);
        assert_eq!(rng.stream(1).at(5), rng.stream(1).at(5));
        assert_ne!(rng.stream(1).at(5), rng.stream(2).at(5));
        assert_ne!(rng.named("a").at(0), rng.named("b").at(0));
        assert_ne!(CounterRng::new(3).at(0), CounterRng::new(4).at(0));
    }
}
