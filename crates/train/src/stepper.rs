//! Training steps without a run.

use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_model::Transformer;

use crate::step::read_scalars;
use crate::{Optimizer, OptimizerConfig, forward_backward};

/// Makes training steps on given batches, without saving, reporting or checks. For benchmarks and
/// experiments; for runs use [`Trainer`](crate::Trainer).
#[derive(Debug)]
pub struct Stepper {
    /// `None` only during an update.
    model: Option<Transformer>,
    optimizer: Optimizer,
    clip_norm: f64,
    seed: u64,
    recompute: bool,
}

impl Stepper {
    /// Creates a stepper for `model`, which is on an autodiff device. `seed` determines the dropout
    /// masks; for `recompute` see [`forward_backward`].
    pub fn new(model: Transformer, optimizer: OptimizerConfig, seed: u64, recompute: bool) -> Self {
        Self {
            model: Some(model),
            clip_norm: optimizer.clip_norm,
            optimizer: Optimizer::new(optimizer),
            seed,
            recompute,
        }
    }

    /// Makes update `step` on the micro-batches `batches` at learning rate `lr`; `max_lr` is the
    /// maximum of the schedule. Returns the loss before the update, in nats per token.
    pub fn step(&mut self, batches: &[TokenBatch], step: u64, lr: f64, max_lr: f64) -> f64 {
        let (loss, gradients) =
            forward_backward(self.model(), batches, self.seed, step, self.recompute);
        let norm = gradients
            .norm()
            .unwrap_or_else(|| Tensor::zeros_like(&loss));
        let [loss, norm] = read_scalars(loss, norm);
        let gradients = gradients.clip(norm, self.clip_norm);
        if let Some(model) = self.model.take() {
            // With sole ownership, the weights are updated in place.
            self.model = Some(self.optimizer.update(model, gradients, lr, max_lr));
        }
        loss
    }

    /// The current model.
    pub fn model(&self) -> &Transformer {
        let model = self.model.as_ref();
        model.unwrap_or_else(|| unreachable!("an update always puts the model back"))
    }
}
