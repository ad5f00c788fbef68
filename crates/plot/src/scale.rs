//! Axes: maps values to positions and chooses ticks.

/// Approximate number of ticks per axis.
const TICKS: f64 = 5.0;

/// Axes reach no further than this, so that the distance of their ends is finite.
const LARGEST: f64 = 1e300;

/// A logarithmic axis over at least this factor has ticks at 1, 2 and 5 times each power of ten.
const WIDE_RATIO: f64 = 4.0;

/// Above this number of powers of ten, only the powers themselves have ticks, at most this many.
const MAX_POWERS: i32 = 6;

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
        let (low, high) = separate(low.clamp(-LARGEST, LARGEST), high.clamp(-LARGEST, LARGEST));
        let step = tick_step(low, high);
        Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            log: false,
        }
    }

    /// A logarithmic axis over positive values, widened so that it starts and ends at a tick if it is wide.
    pub fn log(low: f64, high: f64) -> Self {
        let (low, high) = (
            low.clamp(1.0 / LARGEST, LARGEST),
            high.clamp(1.0 / LARGEST, LARGEST),
        );
        let (low, high) = if low < high {
            (low, high)
        } else {
            (low / 1.1, low * 1.1)
        };
        if high / low >= WIDE_RATIO {
            return Self {
                low: tick_below(low),
                high: 1.0 / tick_below(1.0 / high),
                log: true,
            };
        }
        Self {
            low: low / 1.02,
            high: high * 1.02,
            log: true,
        }
    }

    /// The position of `value`, from 0 at the low end to 1 at the high end.
    pub fn fraction(&self, value: f64) -> f64 {
        let value = value.clamp(-LARGEST, LARGEST);
        if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// The ticks with their labels, in ascending order.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        if self.log && self.high / self.low >= WIDE_RATIO * 0.999 {
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
        let powers = last - first;
        let step = (powers / MAX_POWERS).max(1);
        let factors: &[f64] = if powers > MAX_POWERS {
            &[1.0]
        } else {
            &[1.0, 2.0, 5.0]
        };
        let powers = (first..=last).filter(|power| (power - first) % step == 0);
        let values = powers.flat_map(|power| factors.iter().map(move |n| n * 10f64.powi(power)));
        // The ends of the axis are ticks up to rounding.
        let range = self.low * (1.0 - 1e-9)..=self.high * (1.0 + 1e-9);
        values
            .filter(|value| range.contains(value))
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
    (-(step * 1.000_001).log10().floor()).clamp(0.0, 400.0) as usize
}

/// The largest of 1, 2 and 5 times a power of ten that is at most `value`.
fn tick_below(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factors = [5.0, 2.0, 1.0];
    let below = factors.into_iter().map(|factor| factor * power);
    let mut below = below.filter(|tick| *tick <= value * (1.0 + 1e-9));
    below.next().unwrap_or(power)
}

/// Formats a tick label: thousands and millions are abbreviated, and very large or small values are written
/// as powers of ten.
fn label(value: f64, digits: usize) -> String {
    if value.abs() >= 1e9 || digits > 6 && value.abs() > 0.0 {
        let text = format!("{value:.3e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
        return format!("{mantissa}e{exponent}");
    }
    if digits > 6 {
        return "0".to_string();
    }
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
            ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"]
        );
    }

    #[test]
    fn labels_are_short_for_any_range_of_losses() {
        let powers = (-300..300).step_by(7).map(|power| 10f64.powi(power));
        let ranges =
            powers.flat_map(|low| [low * 1.3, low * 7.0, low * 1e40].map(|high| (low, high)));
        let edges = [
            (0.0, f64::MAX),
            (-f64::MAX, f64::MAX),
            (f64::MIN_POSITIVE, 1.0),
            (1e9, 1e9 + 1.0),
        ];
        for (low, high) in ranges.chain(edges) {
            let scales = [Scale::linear(low, high), Scale::log(low.max(1e-308), high)];
            for scale in scales {
                let ticks = scale.ticks();
                assert!(
                    (2..=22).contains(&ticks.len()),
                    "{low} to {high}: {ticks:?}"
                );
                for (value, label) in &ticks {
                    assert!(label.chars().count() <= 12, "{low} to {high}: {label}");
                    assert!(
                        scale.fraction(*value).is_finite(),
                        "{low} to {high}: {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_wide_log_axis_starts_and_ends_at_a_tick() {
        for (low, high) in [
            (0.05, 4.0),
            (0.0002, 1.7),
            (1.0, 100.0),
            (0.3, 7.1),
            (2.4, 11.0),
        ] {
            let scale = Scale::log(low, high);
            let ticks = scale.ticks();
            for (value, edge) in [(ticks[0].0, 0.0), (ticks[ticks.len() - 1].0, 1.0)] {
                assert!(
                    (scale.fraction(value) - edge).abs() < 1e-6,
                    "{low} to {high}: {ticks:?}"
                );
            }
            assert!(scale.fraction(low) >= -1e-9 && scale.fraction(high) <= 1.0 + 1e-9);
        }
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
