//! `nextword devices`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use nextword_model::{DeviceInfo, list_devices};
use serde_json::json;

use crate::args::DevicesArgs;
use crate::output;

/// Target time for measuring one device, in seconds.
const TIME_BUDGET: f64 = 0.3;

/// Lists the devices with their measured speed.
pub(crate) fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    if !args.json {
        output::print_line(&format!(
            "{:<16} {:>14}  hardware",
            "--device", "GFLOP/s (f32)"
        ))?;
    }
    for info in list_devices() {
        let gflops = gflops(&info);
        let (name, description) = (info.name.to_string(), &info.description);
        if args.json {
            let gflops = gflops.as_ref().ok();
            output::print_json(
                &json!({"device": name, "description": description, "gflops": gflops}),
            )?;
        } else {
            let speed = gflops.map_or_else(|problem| problem, |gflops| format!("{gflops:.1}"));
            output::print_line(&format!("{name:<16} {speed:>14}  {description}"))?;
        }
    }
    Ok(())
}

/// Returns the device's GFLOP/s, or why it cannot be measured.
fn gflops(info: &DeviceInfo) -> Result<f64, String> {
    let device = info.name.open().map_err(|e| e.to_string())?;
    catch_unwind(AssertUnwindSafe(|| measure(&device))).map_err(|_| "failed".to_string())
}

/// Returns the GFLOP/s of matrix products at the fastest of the sizes 256, 512 and 1024 that fit the
/// time budget.
fn measure(device: &Device) -> f64 {
    let mut best = 0.0_f64;
    for n in [256, 512, 1024] {
        let (gflops, once) = measure_size(device, n);
        best = best.max(gflops);
        if 8.0 * 4.0 * once > TIME_BUDGET {
            break;
        }
    }
    best
}

/// Returns the GFLOP/s of the product of two n x n matrices, and its seconds.
fn measure_size(device: &Device, n: usize) -> (f64, f64) {
    let matrix = || Tensor::<2>::random([n, n], Distribution::Uniform(-1.0, 1.0), device);
    let (a, b) = (matrix(), matrix());
    let run = |times: usize| {
        let start = Instant::now();
        let mut product = a.clone().matmul(b.clone());
        for _ in 1..times {
            product = a.clone().matmul(b.clone());
        }
        // Reading a value waits for the device.
        let _ = product.slice([0..1, 0..1]).into_data();
        start.elapsed().as_secs_f64().max(1e-9)
    };
    // The first products compile, autotune and warm up.
    run(2);
    let once = run(1);
    let times = (TIME_BUDGET / 3.0 / once).clamp(1.0, 1000.0) as usize;
    let seconds = run(times) / times as f64;
    (2.0 * (n as f64).powi(3) / seconds / 1e9, seconds)
}
