//! Results of benchmarks.

use std::time::Instant;

use nextword_model::peak_memory;
use serde::{Deserialize, Serialize};

use crate::machine;

/// The result of one benchmark: repeated rounds of the same work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The benchmark: `train`, `decode`, `prefill`, `matmul`, `tokenize` or `load`.
    pub bench: String,
    /// What was measured: the name of a shape, or a path.
    pub subject: String,
    /// The device's name.
    pub device: String,
    /// Seconds per unit of work.
    pub seconds: Spread,
    /// The unit of work: a step, a token, a product.
    pub unit: String,
    /// Tokens per second, from the median; absent where no tokens are involved.
    pub tokens_per_second: Option<f64>,
    /// Floating-point operations per second, from the median.
    pub flops_per_second: Option<f64>,
    /// Fraction of `peak` that was reached.
    pub share_of_peak: Option<f64>,
    /// Measured peak: FLOP/s of matrix products, or bytes per second if `peak_is_bandwidth`.
    pub peak: Option<f64>,
    /// Whether memory bandwidth limits this work.
    pub peak_is_bandwidth: bool,
    /// Bytes of weights read per second, from the median; absent where that is not what takes the time.
    #[serde(default)]
    pub bytes_per_second: Option<f64>,
    /// GPU kernels that a unit of work launches; absent on CPUs.
    #[serde(default)]
    pub launches: Option<usize>,
    /// CPU seconds per wall-clock second; absent where other processes did the work.
    pub cores_busy: Option<f64>,
    /// Peak memory in bytes; absent where unknown.
    pub peak_memory_bytes: Option<u64>,
}

/// Median and range of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median: the mean of the two middle values of an even number.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Number of values.
    pub rounds: usize,
}

impl Spread {
    /// Summarizes `samples`; all values are NaN if there are none.
    ///
    /// ```
    /// use nextword_benchmark::Spread;
    ///
    /// let spread = Spread::from_samples(vec![4.0, 1.0, 2.0, 3.0]);
    /// assert_eq!((spread.median, spread.min, spread.max, spread.rounds), (2.5, 1.0, 4.0, 4));
    /// ```
    pub fn from_samples(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let n = samples.len();
        let median = match n {
            0 => f64::NAN,
            _ if n.is_multiple_of(2) => f64::midpoint(samples[n / 2 - 1], samples[n / 2]),
            _ => samples[n / 2],
        };
        Self {
            median,
            min: samples.first().copied().unwrap_or(f64::NAN),
            max: samples.last().copied().unwrap_or(f64::NAN),
            rounds: n,
        }
    }
}

/// The timing of repeated rounds.
pub(crate) struct Timed {
    /// Seconds per unit of work.
    pub(crate) seconds: Spread,
    cores_busy: Option<f64>,
}

impl Timed {
    /// Returns a measurement with the fields that all benchmarks share; the other fields are absent.
    pub(crate) fn report(
        self,
        bench: &str,
        subject: impl Into<String>,
        device: &str,
        unit: &str,
    ) -> Measurement {
        Measurement {
            bench: bench.to_string(),
            subject: subject.into(),
            device: device.to_string(),
            seconds: self.seconds,
            unit: unit.to_string(),
            tokens_per_second: None,
            flops_per_second: None,
            share_of_peak: None,
            peak: None,
            peak_is_bandwidth: false,
            bytes_per_second: None,
            launches: None,
            cores_busy: self.cores_busy,
            peak_memory_bytes: peak_memory(),
        }
    }
}

impl Measurement {
    /// Sets the achieved `flops` per second and the machine's `peak`.
    pub(crate) fn with_flops(self, flops: f64, peak: f64) -> Self {
        Self {
            flops_per_second: Some(flops),
            share_of_peak: Some(flops / peak),
            peak: Some(peak),
            ..self
        }
    }
}

/// Runs `round`, which returns the seconds per unit of work, `rounds` times.
///
/// # Errors
/// If `round` fails.
pub(crate) fn measure_rounds<E>(
    rounds: usize,
    round: impl FnMut() -> Result<f64, E>,
) -> Result<Timed, E> {
    let (wall, busy) = (Instant::now(), machine::cpu_seconds());
    let seconds: Vec<f64> = std::iter::repeat_with(round)
        .take(rounds)
        .collect::<Result<_, _>>()?;
    let wall = wall.elapsed().as_secs_f64().max(1e-9);
    let busy = machine::cpu_seconds().zip(busy);
    Ok(Timed {
        seconds: Spread::from_samples(seconds),
        cores_busy: busy.map(|(after, before)| (after - before) / wall),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        let odd = Spread::from_samples(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert!((Spread::from_samples(vec![4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < 1e-12);
        assert!(Spread::from_samples(Vec::new()).median.is_nan());
    }

    #[test]
    fn a_failed_round_ends_the_benchmark() {
        let mut calls = 0;
        let timed = measure_rounds(5, || {
            calls += 1;
            match calls {
                3 => Err("failed"),
                _ => Ok(1.0),
            }
        });
        assert!(timed.is_err());
        assert_eq!(calls, 3);
    }
}
