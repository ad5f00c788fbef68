//! Statistics of experiments: means, intervals over seeds, bootstrap over blocks of tokens.

mod bootstrap;
mod student;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use bootstrap::{BlockSum, bootstrap_mean};
pub use student::{student_t_cdf, student_t_quantile};

/// The share of experiments whose interval contains the true value.
pub const CONFIDENCE: f64 = 0.95;

/// An estimate with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub mean: f64,
    /// Lower end of the 95 % confidence interval.
    pub lower: f64,
    /// Upper end of it.
    pub upper: f64,
}

impl Interval {
    /// Whether `value` is in the interval.
    pub fn contains(&self, value: f64) -> bool {
        (self.lower..=self.upper).contains(&value)
    }
}

/// The mean of `values`; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of the population that `values` are a sample of (with `n - 1`); `None` for fewer than two
/// values.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let center = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The mean of `values` with Student's 95 % interval, which assumes that they are independent and roughly normal;
/// `None` for fewer than two values.
///
/// ```
/// use nextword_experiments::statistics::mean_interval;
///
/// let interval = mean_interval(&[0.9, 1.0, 1.1]).unwrap();
/// // The standard error is 0.1 / sqrt(3), and the quantile for 2 degrees of freedom 4.303.
/// assert!((interval.upper - (1.0 + 4.303 * 0.1 / 3f64.sqrt())).abs() < 1e-4);
/// assert!(mean_interval(&[1.0]).is_none());
/// ```
pub fn mean_interval(values: &[f64]) -> Option<Interval> {
    let center = mean(values)?;
    let deviation = standard_deviation(values)?;
    let n = values.len() as f64;
    let quantile = student_t_quantile(f64::midpoint(1.0, CONFIDENCE), n - 1.0);
    let half = quantile * deviation / n.sqrt();
    Some(Interval {
        mean: center,
        lower: center - half,
        upper: center + half,
    })
}

/// The larger value, or NaN if one of them is NaN, which `f64::max` would ignore.
pub(crate) fn max_or_nan(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}
