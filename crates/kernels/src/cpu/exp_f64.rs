//! Exponentials in f64, for sampling probabilities.

use pulp::Simd;

use super::simd::dispatch;

/// 1.5 * 2^52: adding it rounds to an integer and leaves that integer in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has so few significant bits that its product with an exponent is
/// exact.
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// 1/13!, 1/12! ... 1/0!: the Taylor series, accurate to 2^-53 on [-ln 2 / 2, ln 2 / 2].
const TERMS: [f64; 14] = {
    let mut terms = [1.0; 14];
    let mut i = 13;
    while i > 0 {
        terms[i - 1] = terms[i] / (14 - i) as f64;
        i -= 1;
    }
    terms
};

/// `e^x` for `x <= 0`, accurate to 2 ulp; 0 below `e^-708` and for NaN.
///
/// Never fuses multiplies and adds, so the result is the same on every machine.
///
/// # Examples
/// ```
/// let half = nextword_kernels::exp_nonpositive(-std::f64::consts::LN_2);
/// assert!((half - 0.5).abs() < 1e-15);
/// assert_eq!(nextword_kernels::exp_nonpositive(f64::NEG_INFINITY), 0.0);
/// ```
#[inline(always)]
pub fn exp_nonpositive(x: f64) -> f64 {
    let clamped = if x > -708.0 { x } else { -708.0 };
    let shifted = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = sum * r + term;
    }
    // The low bits of `shifted` are n, which is added to the exponent.
    let scaled = f64::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x >= -708.0 { scaled } else { 0.0 }
}

dispatch!(
    /// `weights[i] = e^((logits[i] - max_logit) / temperature)`: the sampling probabilities of tokens,
    /// up to their sum. No logit may exceed `max_logit`.
    ///
    /// # Panics
    /// If the lengths of `logits` and `weights` differ.
    ///
    /// # Examples
    /// ```
    /// let mut weights = [0.0; 2];
    /// nextword_kernels::exp_logits(&[1.0, 3.0], 3.0, 0.5, &mut weights);
    /// assert_eq!(weights[1], 1.0);
    /// assert!((weights[0] - (-4.0_f64).exp()).abs() < 1e-15);
    /// ```
    pub fn exp_logits(logits: &[f32], max_logit: f32, temperature: f64, weights: &mut [f64]) => body
);

#[inline(always)]
fn body<S: Simd>(_: S, logits: &[f32], max_logit: f32, temperature: f64, weights: &mut [f64]) {
    assert_eq!(logits.len(), weights.len());
    let max_logit = f64::from(max_logit);
    for (weight, logit) in weights.iter_mut().zip(logits) {
        *weight = exp_nonpositive((f64::from(*logit) - max_logit) / temperature);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_ulp() {
        let mut worst = 0.0_f64;
        for i in 0..700_000 {
            let x = -f64::from(i) * 1e-3;
            worst = worst.max((exp_nonpositive(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::EPSILON, "{worst:e}");
        assert_eq!(exp_nonpositive(0.0).to_bits(), 1.0_f64.to_bits());
        for x in [-709.0, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(exp_nonpositive(x).to_bits(), 0, "{x}");
        }
    }

    #[test]
    fn exp_logits_matches_scalar_bitwise() {
        let logits: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 40.0).collect();
        let mut weights = vec![0.0; logits.len()];
        exp_logits(&logits, 40.0, 0.7, &mut weights);
        for (logit, weight) in logits.iter().zip(&weights) {
            let one = exp_nonpositive((f64::from(*logit) - 40.0) / 0.7);
            assert_eq!(one.to_bits(), weight.to_bits());
        }
    }
}
