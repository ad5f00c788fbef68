//! Axes: maps values to positions and chooses ticks.

/// Approximate number of ticks per axis.
const TICKS: f64 = 5.0;

/// An axis over a range of values.
///
/// ```
/// let scale = nextword_plot::Scale::linear(0.1, 4.6);
/// let labels: Vec<String> = scale.ticks().into_iter().map(|(_, label)| label).collect();
/// assert_eq!(labels, ["0", "1", "2", "3", "4", "5"]);
/// assert!((scale.fraction(2.5) - 0.5).abs() < 1e-12);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// A linear axis, widened so that it starts and ends at a tick.
    pub fn linear(low: f64, high: f64) -> Self {
        let (low, high) = separate(low, high);
        let step = tick_step(low, high);
        Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            log: false,
        }
    }

    /// A logarithmic axis over positive values.
    pub fn log(low: f64, high: f64) -> Self {
        let (low, high) = if low < high {
            (low, high)
        } else {
            (low / 1.1, low * 1.1)
        };
        Self {
            low: low / 1.02,
            high: high * 1.02,
            log: true,
        }
    }

    /// The position of `value`, from 0 at the low end to 1 at the high end.
    pub fn fraction(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// The ticks with their labels, in ascending order.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        if self.log && self.high / self.low >= 4.0 {
            return self.log_ticks();
        }
        let step = tick_step(self.low, self.high);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        let digits = digits(step);
        (first..=last)
            .map(|n| n as f64 * step)
            .map(|value| (value, label(value, digits)))
            .collect()
    }

    /// Ticks at 1, 2 and 5 times each power of ten.
    fn log_ticks(&self) -> Vec<(f64, String)> {
        let (first, last) = (
            self.low.log10().floor() as i32,
            self.high.log10().ceil() as i32,
        );
        let values =
            (first..=last).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10f64.powi(power)));
        values
            .filter(|value| (self.low..=self.high).contains(value))
            .map(|value| {
                (
                    value,
                    label(value, digits(10f64.powf(value.log10().floor()))),
                )
            })
            .collect()
    }
}

/// Returns both ends, moved apart if they are equal.
fn separate(low: f64, high: f64) -> (f64, f64) {
    if high - low > 1e-9 * low.abs().max(high.abs()) {
        return (low, high);
    }
    let half = (low.abs() * 0.1).max(0.5);
    (low - half, high + half)
}

/// The distance between ticks: 1, 2 or 5 times a power of ten.
fn tick_step(low: f64, high: f64) -> f64 {
    let rough = (high - low) / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = match rough / power {
        f if f < 1.5 => 1.0,
        f if f < 3.5 => 2.0,
        f if f < 7.5 => 5.0,
        _ => 10.0,
    };
    factor * power
}

/// The decimals needed to distinguish ticks at this distance.
fn digits(step: f64) -> usize {
    (-(step * 1.000_001).log10().floor()).clamp(0.0, 12.0) as usize
}

/// Formats a tick label; thousands and millions are abbreviated.
fn label(value: f64, digits: usize) -> String {
    let short = |unit: f64, name: &str| {
        let text = format!("{:.2}", value / unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value.abs() {
        v if v >= 1e6 => short(1e6, "M"),
        v if v >= 1e4 => short(1e3, "k"),
        _ => format!("{value:.digits$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            labels(Scale::linear(0.0, 5000.0)),
            ["0", "1000", "2000", "3000", "4000", "5000"]
        );
        assert_eq!(
            labels(Scale::linear(1.43, 4.21)),
            ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5"]
        );
        assert_eq!(
            labels(Scale::linear(0.0, 50_000.0)),
            ["0", "10k", "20k", "30k", "40k", "50k"]
        );
    }

    #[test]
    fn wide_log_axis_has_ticks_at_1_2_and_5() {
        assert_eq!(
            labels(Scale::log(0.05, 4.0)),
            ["0.05", "0.1", "0.2", "0.5", "1", "2"]
        );
    }

    #[test]
    fn narrow_log_axis_has_ticks() {
        assert!(labels(Scale::log(1.5, 2.5)).len() >= 3);
    }

    #[test]
    fn fraction_runs_from_low_to_high_end() {
        let scale = Scale::linear(0.0, 10.0);
        assert!(scale.fraction(0.0).abs() < 1e-12 && (scale.fraction(10.0) - 1.0).abs() < 1e-12);
        let scale = Scale::log(1.0, 100.0);
        assert!((scale.fraction(10.0) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn single_value_lies_within_its_axis() {
        for value in [0.0, 3.0, -2.0, 1e9] {
            let fraction = Scale::linear(value, value).fraction(value);
            assert!((0.0..=1.0).contains(&fraction), "{value}: {fraction}");
        }
        assert!((Scale::log(2.0, 2.0).fraction(2.0) - 0.5).abs() < 1e-9);
    }
}
