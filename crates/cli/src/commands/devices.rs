//! `nextword devices`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use nextword_model::{DeviceInfo, list_devices};
use serde_json::json;

use crate::args::DevicesArgs;
use crate::output;

/// Seconds that measuring one device should take.
const BUDGET: f64 = 0.3;

/// Lists devices with their speed.
pub(crate) fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    if !args.json {
        output::line(&format!(
            "{:<16} {:>14}  hardware",
            "--device", "GFLOP/s (f32)"
        ))?;
    }
    for info in list_devices() {
        let rate = rate(&info);
        let (name, description) = (info.name.to_string(), &info.description);
        if args.json {
            let rate = rate.as_ref().ok();
            output::json(&json!({"device": name, "description": description, "gflops": rate}))?;
        } else {
            let rate = rate.map_or_else(|problem| problem, |rate| format!("{rate:.1}"));
            output::line(&format!("{name:<16} {rate:>14}  {description}"))?;
        }
    }
    Ok(())
}

fn rate(info: &DeviceInfo) -> Result<f64, String> {
    let device = info.name.open().map_err(|e| e.to_string())?;
    catch_unwind(AssertUnwindSafe(|| measure(&device))).map_err(|_| "fails".to_string())
}

/// Billions of floating-point operations a second of matrix products, of the size from 256 to 1024
/// that is the fastest and fits the budget.
fn measure(device: &Device) -> f64 {
    let mut best = 0.0_f64;
    for n in [256, 512, 1024] {
        let (rate, once) = measure_size(device, n);
        best = best.max(rate);
        if 8.0 * 4.0 * once > BUDGET {
            break;
        }
    }
    best
}

/// The rate of products of two n x n matrices, and the seconds of one.
fn measure_size(device: &Device, n: usize) -> (f64, f64) {
    let matrix = || Tensor::<2>::random([n, n], Distribution::Uniform(-1.0, 1.0), device);
    let (a, b) = (matrix(), matrix());
    let run = |times: usize| {
        let begin = Instant::now();
        let mut product = a.clone().matmul(b.clone());
        for _ in 1..times {
            product = a.clone().matmul(b.clone());
        }
        // Reading one number waits for the device.
        let _ = product.slice([0..1, 0..1]).into_data();
        begin.elapsed().as_secs_f64().max(1e-9)
    };
    // The first products compile, tune and warm up.
    run(2);
    let once = run(1);
    let times = (BUDGET / 3.0 / once).clamp(1.0, 1000.0) as usize;
    let seconds = run(times) / times as f64;
    (2.0 * (n as f64).powi(3) / seconds / 1e9, seconds)
}
