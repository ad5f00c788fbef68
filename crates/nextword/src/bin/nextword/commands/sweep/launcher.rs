//! One process per run: its memory is measured, and nothing that happens to it affects other runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nextword_experiments::{ExperimentError, Launcher, RunResult, RunSpec, execute_run};
use nextword_train::StopFlag;
use serde_json::Value;

use crate::exit::Code;
use crate::hooks::TrainingHooks;
use crate::{console, exit, signals};

/// How often a run's process is told that the sweep stops.
const POLL: Duration = Duration::from_millis(50);

/// Lines of a failed process's error output that are shown.
const ERROR_LINES: usize = 3;

/// Starts this program again for each run. The process reads the description of the run, and stops when its standard
/// input is closed: also if the sweep's process is killed.
pub(super) struct Processes;

impl Launcher for Processes {
    fn launch(
        &self,
        spec: &RunSpec,
        threads: usize,
        stop: &StopFlag,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<RunResult>, ExperimentError> {
        let failed = |problem: String| ExperimentError::Process {
            run: spec.name.clone(),
            problem,
        };
        let mut child = start(spec, threads)
            .map_err(|error| failed(format!("the process cannot be started: {error}")))?;
        let has_ended = AtomicBool::new(false);
        let errors = thread::scope(|scope| {
            let input = child.stdin.take();
            scope.spawn(|| close_when_stopped(input, stop, &has_ended));
            let errors = child.stderr.take();
            let errors = scope.spawn(move || last_lines(errors));
            read_progress(&mut child, progress);
            has_ended.store(true, Ordering::SeqCst);
            errors.join().unwrap_or_default()
        });
        let status = child.wait();
        if let Some(result) = RunResult::read(&spec.folder)? {
            return Ok(Some(result));
        }
        match status {
            Ok(status) if status.code() == Some(Code::Interrupted as i32) => Ok(None),
            _ if stop.is_raised() => Ok(None),
            Ok(status) => Err(failed(format!("{errors} ({status})"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

fn start(spec: &RunSpec, threads: usize) -> std::io::Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("sweep-run")
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(input) = &mut child.stdin {
        writeln!(input, "{}", serde_json::to_string(spec)?)?;
    }
    Ok(child)
}

/// Closes a process's standard input when the sweep stops or the process has ended.
fn close_when_stopped(input: Option<ChildStdin>, stop: &StopFlag, has_ended: &AtomicBool) {
    while !stop.is_raised() && !has_ended.load(Ordering::SeqCst) {
        thread::sleep(POLL);
    }
    drop(input);
}

/// Passes on the updates that a process reports, until its output ends.
fn read_progress(child: &mut Child, progress: &mut dyn FnMut(u64, u64)) {
    let Some(events) = child.stdout.take() else {
        return;
    };
    for line in BufReader::new(events).lines().map_while(Result::ok) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if let (Some(step), Some(steps)) = (event["step"].as_u64(), event["steps"].as_u64()) {
            progress(step, steps);
        }
    }
}

/// The last lines of a process's error output.
fn last_lines(errors: Option<impl Read>) -> String {
    let mut text = Vec::new();
    if let Some(mut errors) = errors {
        let _ = errors.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("; ")
}

/// Trains the run that standard input describes, and stops when standard input ends.
pub(crate) fn run_one() -> anyhow::Result<ExitCode> {
    let mut input = BufReader::new(std::io::stdin());
    let mut line = String::new();
    input.read_line(&mut line)?;
    let spec: RunSpec = serde_json::from_str(&line).map_err(|error| {
        exit::usage(format!(
            "sweep-run is for `nextword sweep`, which describes a run on standard input: {error}; hint: use `nextword \
             sweep`"
        ))
    })?;
    let stop = signals::stop_flag(true)?;
    let sweep_ended = stop.clone();
    thread::spawn(move || {
        let _ = input.read_to_end(&mut Vec::new());
        sweep_ended.raise();
    });
    let mut hooks = TrainingHooks {
        prompt_template: spec.config()?.samples.prompt_template,
        stop: stop.clone(),
    };
    let mut reporter = console::reporter(false, true);
    let result = execute_run(&spec, reporter.as_mut(), &mut hooks, &stop)?;
    Ok(match result {
        Some(_) => ExitCode::SUCCESS,
        None => Code::Interrupted.into(),
    })
}
