//! What is told of a run whose numbers are no longer finite.

use nextword_data::TokenBatch;
use nextword_model::Dropout;

use super::Trainer;
use crate::nonfinite::first_nonfinite;
use crate::{Gradients, TrainError};

impl Trainer {
    /// The step on `batches` went wrong: looks for the first place at fault.
    pub(super) fn diverged(
        &self,
        batches: &[TokenBatch],
        gradients: &Gradients,
        rate: f64,
        loss: f64,
    ) -> TrainError {
        let (seed, step) = (self.state.seed, self.state.step);
        let dropout = |first| Dropout::training(seed, step, first);
        let first = first_nonfinite(self.model(), batches, gradients, dropout);
        self.divergence(step + 1, first, rate, loss)
    }

    /// The error of update `step`, where `first` went wrong.
    pub(super) fn divergence(&self, step: u64, first: String, rate: f64, loss: f64) -> TrainError {
        let history: Vec<String> = self.norms.iter().map(|norm| format!("{norm:.3}")).collect();
        TrainError::Diverged {
            step,
            learning_rate: rate,
            loss,
            history: history.join(", "),
            first,
        }
    }
}
