//! Random numbers as pure functions of a key and a counter.
//!
//! There is no generator state: value 7 of a stream is computed without values 0 to 6. So a run is
//! resumed from integers alone, and thread scheduling cannot change a result.
//!
//! The mixing function is the finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast Splittable
//! Pseudorandom Number Generators", OOPSLA 2014, with David Stafford's constants "Mix13"). The counter
//! walks from the key in steps of the golden gamma, so one stream is exactly a `SplitMix64` sequence.
//! It is not cryptographically secure.
//!
//! There are two ways from a seed to a key, and saved runs depend on both: [`CounterRng::new`], from
//! which any number of streams can be derived, is used for weights, dropout and sampling;
//! [`CounterRng::with_stream`] is used for the order of the data and the built-in corpora.

/// The odd number nearest to 2^64 divided by the golden ratio: the increment of `SplitMix64`.
pub const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// Separates [`CounterRng::new`] from other uses of the same seed: "nextword" in ASCII.
const DOMAIN: u64 = 0x6E65_7874_776F_7264;

/// The finalizer of `SplitMix64`: every input bit flips each output bit with a probability near one
/// half.
// Always inlined, so that loops over it are vectorized for the instruction set of the caller.
#[allow(clippy::inline_always)]
#[inline(always)]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A stream of random values, addressed by counter.
///
/// ```
/// use nextword_base::CounterRng;
///
/// let rng = CounterRng::new(42).named("dropout").stream(7);
/// assert_eq!(rng.at(3), rng.at(3));
/// assert!((0.0..1.0).contains(&rng.uniform(0)));
/// assert!(rng.below(1, 6) < 6);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRng {
    key: u64,
}

impl CounterRng {
    /// Creates the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            key: mix(seed ^ DOMAIN),
        }
    }

    /// Creates stream number `stream` of `seed`. It differs from `new(seed).stream(stream)`.
    pub fn with_stream(seed: u64, stream: u64) -> Self {
        let seed_key = mix(seed.wrapping_add(GOLDEN_GAMMA));
        let stream_key = mix(stream.wrapping_mul(GOLDEN_GAMMA).wrapping_add(1));
        Self {
            key: mix(seed_key ^ stream_key),
        }
    }

    /// Derives an independent stream for `id`: `rng.stream(step).stream(layer)`.
    pub fn stream(self, id: u64) -> Self {
        Self {
            key: mix(self.key ^ mix(id.wrapping_add(GOLDEN_GAMMA))),
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

    /// The key that determines all values of this stream.
    pub fn key(self) -> u64 {
        self.key
    }

    /// The `counter`-th 64 random bits.
    pub fn at(self, counter: u64) -> u64 {
        let steps = counter.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA);
        mix(self.key.wrapping_add(steps))
    }

    /// The `counter`-th uniform value in [0, 1), in steps of 2^-53.
    pub fn uniform(self, counter: u64) -> f64 {
        (self.at(counter) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The `counter`-th uniform value in `0..n`; 0 when `n` is 0. Uses multiplication (Lemire 2019)
    /// without the rejection step: the relative error of a value's probability is below n / 2^64.
    pub fn below(self, counter: u64, n: u64) -> u64 {
        ((u128::from(self.at(counter)) * u128::from(n)) >> 64) as u64
    }

    /// The `counter`-th standard normal value (Box and Muller 1958). Uses the uniform values
    /// `2 counter` and `2 counter + 1`.
    pub fn normal(self, counter: u64) -> f64 {
        let first = 1.0 - self.uniform(counter.wrapping_mul(2)); // in (0, 1]: its logarithm is finite
        let second = self.uniform(counter.wrapping_mul(2).wrapping_add(1));
        (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos()
    }

    /// Returns a sequential generator that starts at counter 0.
    pub fn sequence(self) -> RandomSequence {
        RandomSequence {
            rng: self,
            counter: 0,
        }
    }
}

/// A [`CounterRng`] with a running counter, for code that needs an unknown number of values.
///
/// ```
/// use nextword_base::CounterRng;
///
/// let mut random = CounterRng::new(1).sequence();
/// let words = ["one", "two", "three"];
/// assert!(random.choose(&words).is_some());
/// assert!(random.below(10) < 10);
/// ```
#[derive(Debug, Clone)]
pub struct RandomSequence {
    rng: CounterRng,
    counter: u64,
}

impl RandomSequence {
    /// The next 64 uniform bits.
    pub fn u64(&mut self) -> u64 {
        self.counter += 1;
        self.rng.at(self.counter - 1)
    }

    /// The next value, uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.counter += 1;
        self.rng.below(self.counter - 1, n as u64) as usize
    }

    /// A uniformly chosen element of `choices`; `None` if it is empty.
    pub fn choose<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let index = self.below(choices.len());
        choices.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stream_is_splitmix64() {
        // The reference sequence of SplitMix64 from state 1234567, as published with Vigna's code.
        let rng = CounterRng { key: 1_234_567 };
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!([rng.at(0), rng.at(1), rng.at(2)], expected);
    }

    /// Values of version 0.1. Resumed runs depend on them.
    #[test]
    fn streams_never_change() {
        let rng = CounterRng::new(42);
        let bits = [
            rng.at(0),
            rng.named("init").at(5),
            rng.named("dropout").stream(7).at(1),
            CounterRng::with_stream(42, 1).at(0),
            CounterRng::with_stream(7, 1 << 40).at(3),
        ];
        let expected = [
            0xF6C5_0A52_E427_2987,
            0x5513_81DA_9308_4FA1,
            0x2B9E_24C5_4785_6AA4,
            0x5673_BE34_6681_A8B4,
            0xA0D2_16FB_A18D_7B73,
        ];
        assert_eq!(bits, expected);
        let data = CounterRng::with_stream(42, 3);
        let uniform = [rng.uniform(0), data.uniform(1)].map(f64::to_bits);
        assert_eq!(
            uniform,
            [4_606_857_656_095_507_685, 4_604_916_088_382_040_026]
        );
        // The last bits depend on the platform's logarithm and cosine.
        assert!((rng.normal(3) - 0.891_599_899_320_569_9).abs() < 1e-14);
        assert!((data.normal(1) + 0.911_263_705_832_532_7).abs() < 1e-14);
        assert_eq!(data.below(2, 1000), 710);
    }

    #[test]
    fn uniform_values_have_the_right_mean_and_range() {
        let rng = CounterRng::with_stream(3, 9);
        let n = 20_000;
        let mean = (0..n).map(|i| rng.uniform(i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((0..n).all(|i| (0.0..1.0).contains(&rng.uniform(i))));
        let mut counts = [0u32; 7];
        for i in 0..70_000 {
            counts[rng.below(i, 7) as usize] += 1;
        }
        assert!(
            counts.iter().all(|&c| (9_600..10_400).contains(&c)),
            "{counts:?}"
        );
    }

    #[test]
    fn normal_values_have_mean_zero_and_variance_one() {
        for rng in [
            CounterRng::with_stream(5, 0),
            CounterRng::new(3).named("test"),
        ] {
            let values: Vec<f64> = (0..100_000).map(|i| rng.normal(i)).collect();
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            assert!(
                mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
                "{mean} {variance}"
            );
        }
    }

    #[test]
    fn streams_names_and_seeds_differ() {
        let rng = CounterRng::new(3);
        let mut keys = vec![rng.key(), CounterRng::new(4).key()];
        keys.extend(
            [rng.stream(1), rng.stream(2), rng.named("a"), rng.named("b")].map(CounterRng::key),
        );
        for (seed, stream) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2)] {
            keys.push(CounterRng::with_stream(seed, stream).key());
            keys.push(CounterRng::new(seed).stream(stream).key());
        }
        let distinct: std::collections::HashSet<u64> = keys.iter().copied().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn a_sequence_counts_from_zero() {
        let rng = CounterRng::new(9);
        let mut sequence = rng.sequence();
        assert_eq!(sequence.u64(), rng.at(0));
        assert_eq!(sequence.below(10) as u64, rng.below(1, 10));
        assert_eq!(sequence.choose::<u8>(&[]), None);
        assert_eq!(sequence.u64(), rng.at(3));
    }
}
