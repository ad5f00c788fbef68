//! A pseudorandom permutation that needs no memory.

use nextword_base::rng::mix;

/// A permutation of `0..n` selected by a key; each element is computed independently.
///
/// A balanced Feistel network permutes the integers of `2 * half_bits` bits, the smallest such set
/// that contains `0..n` (at most four times as large). A result outside `0..n` is permuted again
/// until it is inside ("cycle walking": Black and Rogaway, "Ciphers with Arbitrary Finite
/// Domains", 2002). Both steps are bijections, so the result is one too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    key: u64,
    n: u64,
    half_bits: u32,
}

/// Four rounds make a Feistel network look random (Luby and Rackoff 1988); two more cost little
/// and help the very small halves.
const ROUNDS: u64 = 6;

impl Permutation {
    pub(crate) fn new(key: u64, n: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self {
            key,
            n,
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    /// Returns the element at `index` (below `n`).
    pub(crate) fn at(self, index: u64) -> u64 {
        debug_assert!(index < self.n);
        let mut value = self.feistel(index);
        while value >= self.n {
            value = self.feistel(value);
        }
        value
    }

    fn feistel(self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let mixed = mix(self.key ^ mix(right ^ (round << 56)));
            (left, right) = (right, left ^ (mixed & mask));
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_is_bijective_for_every_size() {
        for n in (1..=130).chain([1000, 1024, 4097, 65_537]) {
            for key in [0, 1, u64::MAX] {
                let permutation = Permutation::new(key, n);
                let mut seen = vec![false; n as usize];
                for index in 0..n {
                    let value = permutation.at(index) as usize;
                    assert!(
                        !std::mem::replace(&mut seen[value], true),
                        "n {n} value {value} twice"
                    );
                }
            }
        }
    }

    #[test]
    fn keys_give_distinct_orders_without_local_structure() {
        let order = |key| {
            (0..1000)
                .map(|p| Permutation::new(key, 1000).at(p))
                .collect::<Vec<_>>()
        };
        let (first, second) = (order(1), order(2));
        assert_ne!(first, second);
        let close = first
            .windows(2)
            .filter(|w| w[0].abs_diff(w[1]) < 10)
            .count();
        assert!(close < 50, "{close} of 999 adjacent pairs stayed within 10");
        let fixed = first
            .iter()
            .enumerate()
            .filter(|&(i, &v)| i as u64 == v)
            .count();
        assert!(fixed < 10, "{fixed} fixed points");
    }

    #[test]
    fn all_permutations_of_four_are_about_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for key in 0..24_000u64 {
            let permutation = Permutation::new(mix(key), 4);
            let order: Vec<u64> = (0..4).map(|p| permutation.at(p)).collect();
            *counts.entry(order).or_insert(0u32) += 1;
        }
        assert!(counts.values().all(|&c| c > 400), "{counts:?}");
    }
}
