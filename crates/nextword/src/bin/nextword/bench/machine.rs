//! Measures this machine's peak performance and this process's resource usage.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use nextword_kernels::Precision;

/// Measures the FLOP/s of a large matrix product in `precision` on `device`: the best of six.
pub(crate) fn peak_flops(device: &Device, precision: Precision) -> f64 {
    const N: usize = 1024;
    let random = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, device);
    let (x, w) = (random([1, N, N]), random([1, N, N]).reshape([N, N]));
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let start = Instant::now();
        let y = nextword_kernels::linear_with_precision(precision, x.clone(), w.clone(), None);
        // Reading a value waits for the device.
        black_box(y.narrow(1, 0, 1).narrow(2, 0, 1).into_data());
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (N as f64).powi(3) / best
}

/// Measures the bytes per second that all cores together read from memory: the best of four passes
/// over a buffer larger than the caches.
pub(crate) fn read_bandwidth() -> f64 {
    const BYTES: usize = 512 << 20;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = vec![1_u64; BYTES / 8];
    let chunk_len = memory.len().div_ceil(threads);
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for chunk in memory.chunks(chunk_len) {
                scope.spawn(move || black_box(sum(chunk)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    BYTES as f64 / best
}

/// Sums with 32 independent accumulators, which the compiler vectorizes.
fn sum(values: &[u64]) -> u64 {
    let (chunks, rest) = values.as_chunks::<32>();
    let mut sums = [0_u64; 32];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().chain(rest).fold(0, |a, b| a.wrapping_add(*b))
}

/// Returns the CPU seconds of this process so far over all threads, where the system reports them.
/// Threads that spin while they wait count too.
pub(crate) fn cpu_seconds() -> Option<f64> {
    /// Clock ticks per second: 100 on every Linux architecture.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The process name in parentheses may contain spaces.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    Some(ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / TICKS)
}

/// Returns the peak resident memory of this process in bytes, where the system reports it.
pub(crate) fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}
