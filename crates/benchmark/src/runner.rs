//! Where and how often benchmarks run.

use burn::tensor::Device;
use nextword_model::DeviceName;

use crate::BenchmarkError;
use crate::measurement::{Measurement, Timed, measure_rounds};

/// Runs benchmarks on a device, several rounds each.
#[derive(Debug)]
pub struct Runner {
    pub(crate) device: Device,
    name: String,
    rounds: usize,
}

impl Runner {
    /// Opens the device with this name, as in [`DeviceName`]. Each benchmark repeats its work `rounds`
    /// times, at least once.
    ///
    /// # Errors
    /// [`BenchmarkError::Model`] if there is no such device or it does not work.
    pub fn open(device: &str, rounds: usize) -> Result<Self, BenchmarkError> {
        let name = device.parse::<DeviceName>()?.resolve()?;
        Ok(Self {
            device: name.open()?,
            name: name.to_string(),
            rounds: rounds.max(1),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Repeats `round`, which returns the seconds per unit of work.
    pub(crate) fn measure<E>(&self, round: impl FnMut() -> Result<f64, E>) -> Result<Timed, E> {
        measure_rounds(self.rounds, round)
    }

    /// Returns a measurement on this device with the fields that all benchmarks share.
    pub(crate) fn report(
        &self,
        timed: Timed,
        bench: &str,
        subject: impl Into<String>,
        unit: &str,
    ) -> Measurement {
        timed.report(bench, subject, &self.name, unit)
    }
}
