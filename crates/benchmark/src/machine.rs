//! Peak performance of this machine, and CPU time of this process.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use nextword_kernels::Precision;

/// Measures the FLOP/s of a large matrix product in `precision` on `device`: the best of six.
pub fn peak_flops(device: &Device, precision: Precision) -> f64 {
    const N: usize = 1024;
    let random = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, device);
    let (x, w) = (random([1, N, N]), random([1, N, N]).reshape([N, N]));
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let start = Instant::now();
        let y = nextword_kernels::linear_with_precision(precision, x.clone(), w.clone(), None);
        // Reading a value waits for the device.
        black_box(y.narrow(1, 0, 1).narrow(2, 0, 1).into_scalar::<f32>());
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (N as f64).powi(3) / best
}

/// Measures the bytes per second that all cores together read from memory: the best of four passes
/// over a buffer larger than the caches.
pub fn read_bandwidth() -> f64 {
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

/// Measures the bytes per second that `device` reads and writes in a copy of 64 MB: the best of five rounds of
/// eight.
pub fn copy_bandwidth(device: &Device) -> f64 {
    const LEN: usize = 16 << 20;
    const COPIES: usize = 8;
    let x = Tensor::<1>::ones([LEN], device);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let copy = (0..COPIES).fold(x.clone(), |copy, _| copy * 1.0);
        // Reading a value waits for the device.
        black_box(copy.narrow(0, 0, 1).into_scalar::<f32>());
        best = best.min(start.elapsed().as_secs_f64());
    }
    (2 * COPIES * LEN * size_of::<f32>()) as f64 / best
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

/// CPU seconds of this process so far over all threads, where the system reports them.
/// Threads that spin while they wait count too.
pub fn cpu_seconds() -> Option<f64> {
    /// Clock ticks per second: 100 on every Linux architecture.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The process name in parentheses may contain spaces.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    Some(ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / TICKS)
}

/// Measures the GFLOP/s of plain f32 matrix products on `device`, at the fastest of the sizes 256, 512 and
/// 1024 that fit into about `seconds`.
///
/// ```
/// let runner = nextword_benchmark::Runner::open("flex", 1)?;
/// assert!(nextword_benchmark::machine::matmul_gflops(runner.device(), 0.1) > 0.0);
/// # Ok::<(), nextword_benchmark::BenchmarkError>(())
/// ```
pub fn matmul_gflops(device: &Device, seconds: f64) -> f64 {
    let mut best = 0.0_f64;
    for n in [256, 512, 1024] {
        let (gflops, once) = gflops_of_size(device, n, seconds / 3.0);
        best = best.max(gflops);
        if 8.0 * 4.0 * once > seconds {
            break;
        }
    }
    best
}

/// Returns the GFLOP/s of products of two n x n matrices in about `seconds`, and the seconds of one.
fn gflops_of_size(device: &Device, n: usize, seconds: f64) -> (f64, f64) {
    let matrix = || Tensor::<2>::random([n, n], Distribution::Uniform(-1.0, 1.0), device);
    let (a, b) = (matrix(), matrix());
    let run = |times: usize| {
        let start = Instant::now();
        let mut product = a.clone().matmul(b.clone());
        for _ in 1..times {
            product = a.clone().matmul(b.clone());
        }
        // Reading a value waits for the device.
        black_box(product.slice([0..1, 0..1]).into_scalar::<f32>());
        start.elapsed().as_secs_f64().max(1e-9)
    };
    // The first products compile, autotune and warm up.
    run(2);
    let once = run(1);
    let times = (seconds / once).clamp(1.0, 1000.0) as usize;
    let each = run(times) / times as f64;
    (2.0 * (n as f64).powi(3) / each / 1e9, each)
}
