//! Benchmarks of `nextword bench`.

pub(crate) mod args;
pub(crate) mod decode;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod matmul;
pub(crate) mod shapes;
pub(crate) mod tokenize;
pub(crate) mod train;

use std::time::Instant;

use serde::Serialize;

/// The result of one benchmark: repeated rounds of the same work.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The benchmark: the subcommand's name.
    pub(crate) bench: &'static str,
    /// What was measured: the name of a shape, or a path.
    pub(crate) subject: String,
    pub(crate) device: String,
    /// Seconds per unit of work.
    pub(crate) seconds: Spread,
    /// The unit of work: a step, a token, a product.
    pub(crate) unit: &'static str,
    /// Tokens per second, from the median; absent where no tokens are involved.
    pub(crate) tokens_per_second: Option<f64>,
    /// Floating-point operations per second, from the median.
    pub(crate) flops_per_second: Option<f64>,
    /// Fraction of `peak` that was reached.
    pub(crate) share_of_peak: Option<f64>,
    /// Measured peak: FLOP/s of matrix products, or bytes per second if `peak_is_bandwidth`.
    pub(crate) peak: Option<f64>,
    pub(crate) peak_is_bandwidth: bool,
    /// CPU seconds per wall-clock second; absent where other processes did the work.
    pub(crate) cores_busy: Option<f64>,
    /// Peak memory in bytes; absent where unknown.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// Median and range of repeated measurements.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: usize,
}

impl Spread {
    fn from_samples(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let n = seconds.len();
        let median = match n {
            0 => f64::NAN,
            _ if n.is_multiple_of(2) => f64::midpoint(seconds[n / 2 - 1], seconds[n / 2]),
            _ => seconds[n / 2],
        };
        Self {
            median,
            min: seconds.first().copied().unwrap_or(f64::NAN),
            max: seconds.last().copied().unwrap_or(f64::NAN),
            rounds: n,
        }
    }
}

/// The timing of repeated rounds.
pub(crate) struct Timed {
    /// Seconds per unit of work.
    pub(crate) seconds: Spread,
    pub(crate) cores_busy: Option<f64>,
}

impl Timed {
    /// Returns a report with the fields that all benchmarks share; the other fields are absent.
    pub(crate) fn report(
        self,
        bench: &'static str,
        subject: String,
        device: &str,
        unit: &'static str,
    ) -> Report {
        Report {
            bench,
            subject,
            device: device.to_string(),
            seconds: self.seconds,
            unit,
            tokens_per_second: None,
            flops_per_second: None,
            share_of_peak: None,
            peak: None,
            peak_is_bandwidth: false,
            cores_busy: self.cores_busy,
            peak_memory_bytes: machine::peak_memory(),
        }
    }
}

impl Report {
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
pub(crate) fn measure_rounds(
    rounds: usize,
    round: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Timed> {
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
    }
}
