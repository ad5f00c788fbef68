//! Reporting a diverged run.

use nextword_data::TokenBatch;
use nextword_model::{Dropout, Transformer};

use super::TrainingLoop;
use crate::nonfinite::{
    first_nonfinite_activation, first_nonfinite_gradient, first_nonfinite_weight,
};
use crate::ranks::{first_description, least_description};
use crate::reduction::StepPart;
use crate::{Gradients, TrainError};

impl TrainingLoop {
    /// The error of the update on `batches`, with the first tensor that is not finite.
    pub(super) fn diverged(
        &self,
        batches: &[TokenBatch],
        part: &StepPart,
        gradients: &Gradients,
        lr: f64,
        loss: f64,
    ) -> TrainError {
        let (seed, step) = (self.state.seed, self.state.step);
        let dropout = |first| Dropout::training(seed, step, first);
        let model = self.stepper.model();
        let own = first_nonfinite_activation(model, batches, part.first_sequence, dropout);
        let found = match first_description(&self.setup.group, own) {
            Ok(found) => found,
            Err(error) => return error,
        };
        // With a part of the gradients on each rank, the first one in the order of the names.
        let gradient = match found {
            Some(_) => Ok(None),
            None => least_description(&self.setup.group, first_nonfinite_gradient(gradients)),
        };
        let gradient = match gradient {
            Ok(gradient) => gradient.map(|name| format!("the gradient of `{name}` is not finite")),
            Err(error) => return error,
        };
        let unknown = || "the loss or the gradient norm is not finite".to_string();
        let first = found.or(gradient).unwrap_or_else(unknown);
        self.divergence(step + 1, first, lr, loss)
    }

    /// Checks that all weights of the current `model` are finite.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] with the first one that is not.
    pub(crate) fn check_weights(&self, model: &Transformer) -> Result<(), TrainError> {
        let Some(name) = first_nonfinite_weight(model) else {
            return Ok(());
        };
        let first = format!("weight `{name}` is not finite");
        let loss = self.state.loss.unwrap_or(f64::NAN);
        Err(self.divergence(self.state.step, first, self.last_lr(), loss))
    }

    /// The error of update `step`, where `first` describes the first tensor that is not finite.
    pub(super) fn divergence(&self, step: u64, first: String, lr: f64, loss: f64) -> TrainError {
        let history: Vec<String> = self.norms.iter().map(|norm| format!("{norm:.3}")).collect();
        TrainError::Diverged {
            step,
            learning_rate: lr,
            loss,
            history: history.join(", "),
            first,
            checkpoint: None,
        }
    }
}
