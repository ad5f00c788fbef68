//! Runs a trainer in the terminal: signals, progress, text samples and the exit code.

use std::process::ExitCode;

use nextword_parallel::Group;
use nextword_train::{Outcome, Reporter, RunSetup, StopFlag, StopReason, Trainer};

use crate::exit::Code;
use crate::hooks::TrainingHooks;
use crate::{console, output, ranks, signals};

/// What a run needs besides its setup.
pub(crate) struct Session {
    hooks: TrainingHooks,
    reporter: Box<dyn Reporter>,
    stop: StopFlag,
    group: Group,
}

impl Session {
    /// Installs the signal handler.
    pub(crate) fn new(setup: &RunSetup, quiet: bool, json: bool) -> anyhow::Result<Self> {
        if let Some(ranks) = ranks::describe(setup).filter(|_| !quiet) {
            output::eprint_line(&ranks);
        }
        // SIGTERM comes from `mpirun` when it ends the ranks, which then say why.
        let is_alone = setup.group.size() == 1;
        let stop = signals::stop_flag(is_alone)?;
        if !is_alone {
            signals::stop_on_user_signal(&stop, true)?;
        }
        Ok(Self {
            hooks: TrainingHooks {
                prompt_template: setup.config.samples.prompt_template.clone(),
                stop: stop.clone(),
            },
            reporter: console::reporter(quiet, json),
            group: setup.group.clone(),
            stop,
        })
    }

    /// Trains until the end of the run or the first signal. If it was interrupted, prints how to resume
    /// it.
    pub(crate) fn run(mut self, trainer: Trainer) -> anyhow::Result<ExitCode> {
        let outcome = trainer.run(self.reporter.as_mut(), &mut self.hooks, &self.stop)?;
        self.group.finish()?;
        Ok(exit_code(&outcome))
    }
}

fn exit_code(outcome: &Outcome) -> ExitCode {
    if outcome.reason != StopReason::Interrupted {
        return ExitCode::SUCCESS;
    }
    output::eprint_line(&console::resume_hint(&outcome.folder));
    Code::Interrupted.into()
}
