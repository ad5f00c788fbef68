//! `nextword devices`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Args;
use nextword_benchmark::machine;
use nextword_model::{DeviceInfo, list_devices};
use serde_json::json;

use crate::output;

/// `devices`.
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print one JSON object per device
    #[arg(long)]
    json: bool,
}

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
    let measure = || machine::matmul_gflops(&device, TIME_BUDGET);
    catch_unwind(AssertUnwindSafe(measure)).map_err(|_| "failed".to_string())
}
