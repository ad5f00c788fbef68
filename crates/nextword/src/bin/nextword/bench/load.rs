//! Benchmark of the time to the first token, including program start and loading.

use std::cell::Cell;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::args::BenchLoadArgs;
use super::{Report, measure_rounds};
use crate::{exit, models};

/// Times an entire process: each round starts this program, which opens the model and generates one
/// token.
pub(crate) fn run(args: &BenchLoadArgs) -> anyhow::Result<Report> {
    let dir = models::open(&args.model, false)?;
    let program = std::env::current_exe()?;
    let peak = Cell::new(None);
    let round = || {
        let start = Instant::now();
        let output = Command::new(&program)
            .arg("generate")
            .arg(&dir.path)
            .args(["--max-tokens", "1", "--seed", "1", "--quiet", "--json"])
            .args(["--device", &args.common.device])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        let seconds = start.elapsed().as_secs_f64();
        if !output.status.success() {
            return Err(exit::bad_file(format!(
                "cannot measure `{}`: `nextword generate` failed, see the error above",
                dir.path.display()
            )));
        }
        let completion: Value = serde_json::from_slice(&output.stdout)?;
        peak.set(peak.get().max(completion["peak_memory_bytes"].as_u64()));
        Ok(seconds)
    };
    round()?; // Loads the files into the page cache.
    let timed = measure_rounds(args.common.rounds, round)?;
    let subject = args.model.display().to_string();
    let report = timed.report("load", subject, &args.common.device, "first token");
    // The work was done by other processes.
    Ok(Report {
        cores_busy: None,
        peak_memory_bytes: peak.get(),
        ..report
    })
}
