//! Student's t distribution.

/// Relative precision of the continued fraction.
const PRECISION: f64 = 1e-15;

/// Terms of the continued fraction after which it has converged for all arguments of interest.
const MAX_TERMS: u32 = 10_000;

/// The probability that a variable of Student's t distribution with `freedom > 0` degrees of freedom is at most `t`.
///
/// ```
/// use nextword_experiments::statistics::student_t_cdf;
///
/// assert_eq!(student_t_cdf(0.0, 3.0), 0.5);
/// assert!((student_t_cdf(1.0, 1.0) - 0.75).abs() < 1e-14); // Cauchy: 1/2 + atan(1) / pi
/// ```
pub fn student_t_cdf(t: f64, freedom: f64) -> f64 {
    let tail = 0.5 * incomplete_beta(freedom / (freedom + t * t), 0.5 * freedom, 0.5);
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// The value that a variable of Student's t distribution does not exceed with `probability`, which is between 0 and 1.
///
/// ```
/// use nextword_experiments::statistics::student_t_quantile;
///
/// assert!((student_t_quantile(0.975, 2.0) - 4.302_652_73).abs() < 1e-8);
/// ```
pub fn student_t_quantile(probability: f64, freedom: f64) -> f64 {
    if probability < 0.5 {
        return -student_t_quantile(1.0 - probability, freedom);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while student_t_cdf(high, freedom) < probability && high < f64::MAX / 2.0 {
        (low, high) = (high, 2.0 * high);
    }
    loop {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            return middle;
        }
        if student_t_cdf(middle, freedom) < probability {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The regularized incomplete beta function `I_x(a, b)` (Press et al., "Numerical Recipes", 6.4).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    let ln_beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    let front = (a * x.ln() + b * (-x).ln_1p() - ln_beta).exp();
    // The fraction converges fast below the mean of the distribution.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(x, a, b) / a
    } else {
        1.0 - front * beta_fraction(1.0 - x, b, a) / b
    }
}

/// The continued fraction of the incomplete beta function, evaluated by Lentz's method.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    let nonzero = |value: f64| {
        if value.abs() < f64::MIN_POSITIVE {
            f64::MIN_POSITIVE
        } else {
            value
        }
    };
    let mut c = 1.0;
    let mut d = 1.0 / nonzero(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for term in 1..MAX_TERMS {
        let m = f64::from(term);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / nonzero(1.0 + even * d);
        c = nonzero(1.0 + even / c);
        value *= c * d;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / nonzero(1.0 + odd * d);
        c = nonzero(1.0 + odd / c);
        value *= c * d;
        if (c * d - 1.0).abs() < PRECISION {
            break;
        }
    }
    value
}
