//! Benchmark of the time to the first token, including program start and loading.

use std::cell::Cell;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::measurement::measure_rounds;
use crate::{BenchmarkError, Measurement};

/// Times an entire process, such as `nextword generate MODEL --max-tokens 1 --json`: each round runs
/// `command` to its end. If the command prints a JSON object with `peak_memory_bytes`, the result contains
/// the maximum. `subject` and `device` are names in the result. The command's standard error is that of
/// this process.
///
/// ```
/// use std::process::Command;
///
/// let mut command = Command::new("echo");
/// command.arg(r#"{"peak_memory_bytes": 1000}"#);
/// let measurement = nextword_benchmark::load("echo", "flex", 3, command).unwrap();
/// assert_eq!(measurement.peak_memory_bytes, Some(1000));
/// assert!(measurement.seconds.min > 0.0);
/// ```
///
/// # Errors
/// [`BenchmarkError`] if the command cannot be started, fails or does not print JSON.
pub fn load(
    subject: &str,
    device: &str,
    rounds: usize,
    mut command: Command,
) -> Result<Measurement, BenchmarkError> {
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let name = shown(&command);
    let peak = Cell::new(None);
    let mut round = || {
        let start = Instant::now();
        let output = command.output().map_err(|source| BenchmarkError::Start {
            program: name.clone(),
            source,
        })?;
        let seconds = start.elapsed().as_secs_f64();
        if !output.status.success() {
            let command = name.clone();
            return Err(BenchmarkError::Failed { command });
        }
        let completion: Value =
            serde_json::from_slice(&output.stdout).map_err(|source| BenchmarkError::Output {
                command: name.clone(),
                source,
            })?;
        peak.set(peak.get().max(completion["peak_memory_bytes"].as_u64()));
        Ok(seconds)
    };
    round()?; // Loads the files into the page cache.
    let timed = measure_rounds(rounds.max(1), round)?;
    let report = timed.report("load", subject, device, "first token");
    // The work was done by other processes.
    Ok(Measurement {
        cores_busy: None,
        peak_memory_bytes: peak.get(),
        ..report
    })
}

/// The name of the program and its first argument, in backticks.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_stem().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args().take(1));
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_the_command_are_errors() {
        for (program, argument, problem) in [
            ("no-such-program", "", "cannot start `no-such-program "),
            ("ls", "/no/such/folder", "`ls /no/such/folder` failed"),
            ("echo", "text", "`echo text` did not print JSON"),
        ] {
            let mut command = Command::new(program);
            command.arg(argument);
            let error = load("x", "flex", 1, command).map_err(|e| e.to_string());
            assert!(
                matches!(&error, Err(message) if message.starts_with(problem)),
                "{error:?}"
            );
        }
    }
}
