//! Attention with linear biases: scores fall with distance.

/// The slope of each head (Press et al. 2021): `2^(-8 i / n)` for `i = 1..=n` when `n` is a power
/// of two; else those of the power below, then every second one of the power above.
pub fn alibi_slopes(n_heads: usize) -> Vec<f64> {
    let power_slopes = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2());
    let below = if n_heads.is_power_of_two() {
        n_heads
    } else {
        n_heads.next_power_of_two() / 2
    };
    power_slopes(below)
        .chain(power_slopes(2 * below).step_by(2))
        .take(n_heads)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_published_ones() {
        assert_eq!(alibi_slopes(2), [0.0625, 0.003_906_25]);
        let six = alibi_slopes(6);
        assert_eq!(&six[..4], &[0.25, 0.0625, 0.015_625, 0.003_906_25]);
        assert_eq!(&six[4..], &[0.5, 0.125]);
    }
}
