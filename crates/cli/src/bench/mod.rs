//! What `nextword bench` measures, and with what.

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

/// One measurement: repeated rounds of the same work.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What was measured: the sub-command.
    pub(crate) bench: &'static str,
    /// On what: a shape's name, a file.
    pub(crate) subject: String,
    pub(crate) device: String,
    /// Seconds of one unit of work: a step, a token, a product.
    pub(crate) seconds: Spread,
    /// What one unit is.
    pub(crate) unit: &'static str,
    /// Tokens in a second, by the median; absent where no tokens are involved.
    pub(crate) tokens_per_second: Option<f64>,
    /// Floating-point operations in a second, by the median.
    pub(crate) flops_per_second: Option<f64>,
    /// Of the measured peak of matrix products (or, in decoding, of the read bandwidth).
    pub(crate) share_of_peak: Option<f64>,
    /// The peak that the share is of: FLOP/s, or bytes a second where `peak_is_bandwidth`.
    pub(crate) peak: Option<f64>,
    pub(crate) peak_is_bandwidth: bool,
    /// Processor seconds over wall seconds: how many cores were at work; absent where other processes
    /// did the work.
    pub(crate) cores_busy: Option<f64>,
    /// The most memory that this process has held so far, in bytes; absent where unknown.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// The middle and the spread of repeated measurements.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: usize,
}

impl Spread {
    fn of(mut seconds: Vec<f64>) -> Self {
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

/// What rounds of work took.
pub(crate) struct Timed {
    /// Of one unit of work.
    pub(crate) seconds: Spread,
    pub(crate) cores_busy: Option<f64>,
}

impl Timed {
    /// The report that all measurements have in common: figures that only some have are left out.
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
    /// With `flops` operations a second, of a machine that can do `peak`.
    pub(crate) fn with_flops(self, flops: f64, peak: f64) -> Self {
        Self {
            flops_per_second: Some(flops),
            share_of_peak: Some(flops / peak),
            peak: Some(peak),
            ..self
        }
    }
}

/// Makes `rounds` rounds; each gives the seconds of one unit of its work.
///
/// # Errors
/// Those of `round`.
pub(crate) fn time(
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
        seconds: Spread::of(seconds),
        cores_busy: busy.map(|(after, before)| (after - before) / wall),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert!((Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < 1e-12);
    }
}
