//! From nothing to the first token.

use std::cell::Cell;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::args::BenchLoadArgs;
use super::{Report, time};
use crate::{exit, records};

/// Measures a whole process: this program is started anew for each round, opens the record and writes
/// one token.
pub(crate) fn run(args: &BenchLoadArgs) -> anyhow::Result<Report> {
    let record = records::open(&args.record, false)?;
    let program = std::env::current_exe()?;
    let peak = Cell::new(None);
    let round = || {
        let begin = Instant::now();
        let done = Command::new(&program)
            .arg("generate")
            .arg(&record.path)
            .args(["--max-tokens", "1", "--seed", "1", "--quiet", "--json"])
            .args(["--device", &args.common.device])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        let seconds = begin.elapsed().as_secs_f64();
        if !done.status.success() {
            return Err(exit::bad_file(format!(
                "`{}` gives no token",
                record.path.display()
            )));
        }
        let answer: Value = serde_json::from_slice(&done.stdout)?;
        peak.set(peak.get().max(answer["peak_memory_bytes"].as_u64()));
        Ok(seconds)
    };
    round()?; // Brings the files into the system's cache.
    let timed = time(args.common.rounds, round)?;
    let subject = args.record.display().to_string();
    let report = timed.report("load", subject, &args.common.device, "first token");
    // Other processes did the work.
    Ok(Report {
        cores_busy: None,
        peak_memory_bytes: peak.get(),
        ..report
    })
}
