//! `ALiBi`: attention with linear biases.

/// The slope of each head (Press et al. 2021): `2^(-8 i / n)` for `i = 1..=n` if `n` is a power of
/// two; otherwise the slopes of the next lower power, then every second one of the next higher power.
///
/// # Example
///
/// ```
/// assert_eq!(nextword_model::alibi_slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
/// ```
pub fn alibi_slopes(n_heads: usize) -> Vec<f64> {
    let power_slopes = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2());
    let lower_power = if n_heads.is_power_of_two() {
        n_heads
    } else {
        n_heads.next_power_of_two() / 2
    };
    power_slopes(lower_power)
        .chain(power_slopes(2 * lower_power).step_by(2))
        .take(n_heads)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_match_the_paper() {
        assert_eq!(alibi_slopes(2), [0.0625, 0.003_906_25]);
        let six = alibi_slopes(6);
        assert_eq!(&six[..4], &[0.25, 0.0625, 0.015_625, 0.003_906_25]);
        assert_eq!(&six[4..], &[0.5, 0.125]);
    }
}
