//! Training steps without a run around them.

use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_model::Transformer;

use crate::step::read;
use crate::{Optimizer, OptimizerConfig, forward_backward};

/// Makes training steps on given batches: nothing is saved, told or checked. Measurements and
/// experiments use it; [`Trainer`](crate::Trainer) makes runs.
#[derive(Debug)]
pub struct Stepper {
    /// There but while it is being updated.
    model: Option<Transformer>,
    optimizer: Optimizer,
    clip_norm: f64,
    seed: u64,
    recompute: bool,
}

impl Stepper {
    /// Steps for `model`, which is on an autodiff device. `seed` chooses the dropout masks; for
    /// `recompute` see [`forward_backward`].
    pub fn new(model: Transformer, optimizer: OptimizerConfig, seed: u64, recompute: bool) -> Self {
        Self {
            model: Some(model),
            clip_norm: optimizer.clip_norm,
            optimizer: Optimizer::new(optimizer),
            seed,
            recompute,
        }
    }

    /// Step number `step` on `batches`, its micro-batches, at the schedule's learning rate `rate`,
    /// whose highest is `peak`. Gives the loss before the update, in nats per token.
    pub fn step(&mut self, batches: &[TokenBatch], step: u64, rate: f64, peak: f64) -> f64 {
        let (loss, gradients) =
            forward_backward(self.model(), batches, self.seed, step, self.recompute);
        let norm = gradients
            .norm()
            .unwrap_or_else(|| Tensor::zeros_like(&loss));
        let [loss, norm] = read(loss, norm);
        let gradients = gradients.clip(norm, self.clip_norm);
        if let Some(model) = self.model.take() {
            // Held by nobody else, the weights are changed where they lie.
            self.model = Some(self.optimizer.update(model, gradients, rate, peak));
        }
        loss
    }

    /// The model as it is now.
    pub fn model(&self) -> &Transformer {
        let model = self.model.as_ref();
        model.unwrap_or_else(|| unreachable!("an update always puts it back"))
    }
}
