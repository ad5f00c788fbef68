//! Random numbers as pure functions of (seed, stream, counter).
//!
//! There is no generator state: value 7 of a stream is computed without values 0 to 6. Resuming the
//! data order therefore needs only integers, and thread scheduling cannot change it.
//!
//! The mixing function is the finalizer of `SplitMix64` (Steele, Lea, Flood, "Fast Splittable
//! Pseudorandom Number Generators", OOPSLA 2014, with David Stafford's constants "Mix13"). Seed and
//! stream are mixed into a key, and the counter walks from that key in steps of the golden gamma,
//! so one stream is exactly a `SplitMix64` sequence. It is not cryptographically secure.

/// The odd number nearest to 2^64 divided by the golden ratio.
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Stream ids of this crate; each use has its own stream.
pub(crate) mod stream {
    pub(crate) const WINDOWS: u64 = 1;
    pub(crate) const EPOCHS: u64 = 2;
    pub(crate) const PHASES: u64 = 3;
    pub(crate) const SPLIT: u64 = 4;
    /// Story `i` uses stream `STORIES + i`; far from the small ids above.
    pub(crate) const STORIES: u64 = 1 << 40;
}

/// One stream of random numbers, addressed by counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Random {
    key: u64,
}

impl Random {
    /// Creates stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let key = mix(mix(seed.wrapping_add(GOLDEN_GAMMA))
            ^ mix(stream.wrapping_mul(GOLDEN_GAMMA).wrapping_add(1)));
        Self { key }
    }

    /// Returns 64 uniform bits.
    pub fn u64(self, counter: u64) -> u64 {
        mix(self
            .key
            .wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA)))
    }

    /// Uniform in [0, 1), in steps of 2^-53.
    pub fn f64(self, counter: u64) -> f64 {
        (self.u64(counter) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [0, 1), in steps of 2^-24.
    pub fn f32(self, counter: u64) -> f32 {
        (self.u64(counter) >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in `0..n`; 0 when `n` is 0. Uses multiplication (Lemire 2019) without the rejection
    /// step: the relative error of a value's probability is below n / 2^64.
    pub fn below(self, counter: u64, n: u64) -> u64 {
        ((u128::from(self.u64(counter)) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal, mean 0 and variance 1 (Box-Muller; uses values `2 counter` and
    /// `2 counter + 1` of the stream).
    pub fn normal(self, counter: u64) -> f64 {
        let first = 1.0 - self.f64(counter.wrapping_mul(2)); // in (0, 1]: its logarithm is finite
        let second = self.f64(counter.wrapping_mul(2).wrapping_add(1));
        (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }

    /// Returns a sequential generator that starts at counter 0.
    pub fn sequence(self) -> RandomSequence {
        RandomSequence {
            random: self,
            counter: 0,
        }
    }
}

/// A [`Random`] stream with a running counter, for code that needs an unknown number of values.
#[derive(Debug, Clone)]
pub struct RandomSequence {
    random: Random,
    counter: u64,
}

impl RandomSequence {
    /// The next 64 uniform bits.
    pub fn u64(&mut self) -> u64 {
        self.counter += 1;
        self.random.u64(self.counter - 1)
    }

    /// The next value, uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.counter += 1;
        self.random.below(self.counter - 1, n as u64) as usize
    }

    /// A uniformly chosen element of `choices`; `None` if it is empty.
    pub fn choose<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let index = self.below(choices.len());
        choices.get(index)
    }
}

/// Stafford's Mix13: every input bit flips each output bit with a probability near one half.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stream_is_splitmix64() {
        // The reference sequence of SplitMix64 from state 1234567, as published with Vigna's code.
        let random = Random { key: 1_234_567 };
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!([random.u64(0), random.u64(1), random.u64(2)], expected);
    }

    #[test]
    fn uniform_values_have_the_right_mean_and_range() {
        let random = Random::new(3, 9);
        let n = 20_000;
        let mean = (0..n).map(|i| random.f64(i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((0..n).all(|i| (0.0..1.0).contains(&random.f32(i))));
        let mut counts = [0u32; 7];
        for i in 0..70_000 {
            counts[random.below(i, 7) as usize] += 1;
        }
        assert!(
            counts.iter().all(|&c| (9_600..10_400).contains(&c)),
            "{counts:?}"
        );
    }

    #[test]
    fn normal_values_have_mean_zero_and_variance_one() {
        let random = Random::new(5, 0);
        let values: Vec<f64> = (0..20_000).map(|i| random.normal(i)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.04,
            "{mean} {variance}"
        );
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Random::new(seed, stream).u64(0);
        let all = [
            first(0, 0),
            first(0, 1),
            first(1, 0),
            first(1, 1),
            first(2, 0),
            first(0, 2),
        ];
        let distinct: std::collections::HashSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
