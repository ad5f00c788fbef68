//! Training on a rank other than 0.

use super::StopFlag;
use crate::ranks::Start;
use crate::report::{StepReport, StopReason, ValidationReport};
use crate::training_loop::{LoopObserver, TrainingLoop, initial_state};
use crate::{OtherTextLoss, RunSetup, TrainError};

/// A rank other than 0 of a run whose files rank 0 keeps with [`Trainer`](super::Trainer). It starts with the model,
/// moments and state of rank 0, makes the same updates, and writes and reports nothing.
#[derive(Debug)]
pub struct Worker {
    setup: RunSetup,
}

impl Worker {
    /// A rank of `setup.group`.
    pub fn new(setup: RunSetup) -> Self {
        Self { setup }
    }

    /// Trains until all ranks stop. A request through `stop` stops them all.
    ///
    /// # Errors
    /// [`TrainError::Parallel`] if the ranks do not agree or one is gone; [`TrainError::Diverged`]; the errors of the
    /// model and the data.
    pub fn run(self, stop: &StopFlag) -> Result<StopReason, TrainError> {
        let model = self.setup.initial_model()?;
        let optimizer = self.setup.config.new_optimizer();
        let state = initial_state(&self.setup);
        let flag = stop.clone();
        self.setup.group.watch(move || flag.is_raised());
        let start = Start {
            model,
            optimizer,
            moments: None,
            state,
        };
        let mut training = TrainingLoop::new(self.setup, start)?;
        let reason = training.run(&mut WorkerObserver { stop })?;
        // Rank 0 saves.
        training.with_moments(|_| Ok(()))?;
        Ok(reason)
    }
}

/// Leaves files and reports to rank 0.
struct WorkerObserver<'a> {
    stop: &'a StopFlag,
}

impl LoopObserver for WorkerObserver<'_> {
    fn stop_requested(&self) -> bool {
        self.stop.is_raised()
    }

    fn stepped(
        &mut self,
        _training: &TrainingLoop,
        _report: &StepReport,
        _logged: bool,
    ) -> Result<(), TrainError> {
        self.stop.mark_stepped();
        Ok(())
    }

    fn measured_other_text(
        &mut self,
        _training: &TrainingLoop,
        _before: &[OtherTextLoss],
    ) -> Result<(), TrainError> {
        Ok(())
    }

    fn validated(
        &mut self,
        _training: &TrainingLoop,
        _report: &ValidationReport,
    ) -> Result<(), TrainError> {
        Ok(())
    }
}
