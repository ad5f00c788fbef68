//! The ranges of visible keys on GPUs.

use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

/// Ranges that were uploaded, by what they depend on.
#[derive(Debug, Default)]
pub(super) struct GpuRanges(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    window: Option<usize>,
    slopes: Vec<u32>,
    device: CubeDevice,
    ranges: CubeTensor,
}

impl GpuRanges {
    /// The kept ranges, or else those that `build` returns.
    pub(super) fn get_or_build(
        &self,
        window: Option<usize>,
        slopes: &[u32],
        device: &CubeDevice,
        build: impl FnOnce() -> CubeTensor,
    ) -> CubeTensor {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |entry: &&Entry| {
            entry.window == window && entry.slopes == slopes && entry.device == *device
        };
        if let Some(entry) = entries.iter().find(is_same) {
            return entry.ranges.clone();
        }
        let ranges = build();
        entries.push(Entry {
            window,
            slopes: slopes.to_vec(),
            device: device.clone(),
            ranges: ranges.clone(),
        });
        ranges
    }
}
