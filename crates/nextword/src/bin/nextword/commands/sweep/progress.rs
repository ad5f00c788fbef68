//! The progress of a sweep, on standard error.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nextword_experiments::{ExperimentError, RunResult, RunSpec, SweepObserver};

use crate::format::{count, sanitize};
use crate::output;

/// Says what is about to be trained.
pub(super) fn overview(runs: &[RunSpec], folder: &Path, parallel: usize, threads: usize) -> String {
    let waiting = runs.iter().filter(|run| !has_ended(run)).count();
    let ended = match runs.len() - waiting {
        0 => String::new(),
        ended => format!(", {ended} of them ended before"),
    };
    let at_a_time = count(parallel as u64, "run");
    let threads = count(threads as u64, "thread");
    format!(
        "{} in {}{ended}; {at_a_time} at a time, each with {threads}",
        count(runs.len() as u64, "run"),
        folder.display()
    )
}

fn has_ended(run: &RunSpec) -> bool {
    RunResult::read(&run.folder).is_ok_and(|result| result.is_some())
}

/// Prints a line for each run that ends, and on a terminal the updates of the running ones.
pub(super) struct Progress {
    quiet: bool,
    state: Mutex<State>,
}

struct State {
    all: usize,
    ended: usize,
    /// Updates of the running runs, by name.
    running: BTreeMap<String, (u64, u64)>,
}

impl Progress {
    pub(super) fn new(runs: &[RunSpec], quiet: bool) -> Self {
        let ended = runs.iter().filter(|run| has_ended(run)).count();
        Self {
            quiet,
            state: Mutex::new(State {
                all: runs.len(),
                ended,
                running: BTreeMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &State) {
        if self.quiet {
            return;
        }
        let running = state.running.iter();
        let running = running.map(|(name, (step, steps))| format!("{name} {step}/{steps}"));
        let running = running.collect::<Vec<_>>().join(", ");
        let line = format!("{}/{} runs; {running}", state.ended, state.all);
        output::eprint_progress(&sanitize(&line));
    }
}

/// Prints a line in place of the progress, which follows below it.
fn print_above(line: &str) {
    output::eprint_progress("");
    output::eprint_line(&sanitize(line));
}

impl SweepObserver for Progress {
    fn progressed(&self, run: &RunSpec, step: u64, steps: u64) {
        let mut state = self.lock();
        state.running.insert(run.name.clone(), (step, steps));
        self.show(&state);
    }

    fn ended(&self, run: &RunSpec, result: &RunResult) {
        let mut state = self.lock();
        state.running.remove(&run.name);
        state.ended += 1;
        if self.quiet {
            return;
        }
        let outcome = match (
            &result.diverged,
            result.validation_loss.or(result.train_loss),
        ) {
            (Some(problem), _) => problem.clone(),
            (None, Some(loss)) => format!("loss {loss:.4}"),
            (None, None) => "no loss was logged".to_string(),
        };
        let (ended, all) = (state.ended, state.all);
        print_above(&format!("[{ended}/{all}] {}: {outcome}", run.name));
        self.show(&state);
    }

    fn failed(&self, run: &RunSpec, error: &ExperimentError) {
        let mut state = self.lock();
        state.running.remove(&run.name);
        let message = error.to_string();
        let named = if message.starts_with(&run.name) {
            message
        } else {
            format!("{}: {message}", run.name)
        };
        print_above(&format!("error: {named}"));
        self.show(&state);
    }
}
