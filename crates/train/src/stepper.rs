//! Optimizer updates, without the loop around them.

use burn::module::Module;
use burn::tensor::Tensor;
use nextword_data::TokenBatch;
use nextword_model::Transformer;
use nextword_parallel::Group;

use crate::ranks::sum_over_ranks;
use crate::reduction::StepPart;
use crate::step::{part_gradients, read_scalars};
use crate::{Gradients, Optimizer, OptimizerConfig, PreferenceMetrics, TrainError};

/// A model with its optimizer: makes updates on given batches. The trainers are loops around it; use it
/// directly for a loop of your own.
///
/// ```
/// use burn::module::Module;
/// use nextword_data::TokenBatch;
/// use nextword_model::{DeviceName, presets};
/// use nextword_train::{OptimizerConfig, Stepper};
///
/// # fn main() -> Result<(), nextword_train::TrainError> {
/// let device = "flex".parse::<DeviceName>()?.open()?;
/// let model = presets::statquest(5).init(&device, 7)?;
/// let mut stepper = Stepper::new(model.train(), OptimizerConfig::default(), 7, false);
/// let batch = TokenBatch { batch: 1, seq: 3, inputs: vec![0, 1, 2], targets: vec![1, 2, 3], ..TokenBatch::default() };
/// let losses: Vec<f64> = (0..100).map(|step| stepper.step(&[batch.clone()], step, 0.1, 0.1)).collect();
/// assert!(losses[99] < losses[0] / 2.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Stepper {
    /// `None` only during an update.
    model: Option<Transformer>,
    optimizer: Optimizer,
    clip_norm: f64,
    seed: u64,
    recompute: bool,
}

/// Loss and gradients of one step, before the update.
pub(crate) struct StepGradients {
    /// The loss, nats per token.
    pub(crate) loss: f64,
    /// Global norm of the gradients before clipping.
    pub(crate) norm: f64,
    /// The gradients, not clipped.
    pub(crate) gradients: Gradients,
    /// Rewards and log probabilities, in runs on preferences.
    pub(crate) preferences: PreferenceMetrics,
}

impl StepGradients {
    fn new(loss: Tensor<1>, gradients: Gradients) -> Self {
        let norm = gradients
            .norm()
            .unwrap_or_else(|| Tensor::zeros_like(&loss));
        let [loss, norm] = read_scalars(loss, norm);
        Self {
            loss,
            norm,
            gradients,
            preferences: PreferenceMetrics::default(),
        }
    }

    /// Whether loss and gradients are finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.norm.is_finite()
    }
}

impl Stepper {
    /// Creates a stepper for `model`, which is on an autodiff device. `seed` determines the dropout
    /// masks; for `recompute` see [`forward_backward`](crate::forward_backward).
    pub fn new(model: Transformer, optimizer: OptimizerConfig, seed: u64, recompute: bool) -> Self {
        Self::with_optimizer(
            model,
            Optimizer::new(optimizer),
            optimizer.clip_norm,
            seed,
            recompute,
        )
    }

    /// Creates a stepper that continues with the moments of `optimizer`.
    pub(crate) fn with_optimizer(
        model: Transformer,
        optimizer: Optimizer,
        clip_norm: f64,
        seed: u64,
        recompute: bool,
    ) -> Self {
        Self {
            model: Some(model),
            optimizer,
            clip_norm,
            seed,
            recompute,
        }
    }

    /// Makes update `step` on the micro-batches `batches` at learning rate `lr`; `max_lr` is the
    /// maximum of the schedule. Returns the loss before the update, in nats per token. Does not check
    /// whether it is finite.
    pub fn step(&mut self, batches: &[TokenBatch], step: u64, lr: f64, max_lr: f64) -> f64 {
        let found = self.gradients(batches, step);
        let loss = found.loss;
        self.update(found, lr, max_lr);
        loss
    }

    /// Computes loss and gradients of update `step`.
    pub(crate) fn gradients(&self, batches: &[TokenBatch], step: u64) -> StepGradients {
        let (loss, gradients) = self.part_gradients(batches, &StepPart::whole(batches), step);
        StepGradients::new(loss, gradients)
    }

    /// Computes loss and gradients of update `step`, of which this rank computes `part`, and sums them over the ranks
    /// of `group`.
    pub(crate) fn gradients_of_ranks(
        &self,
        batches: &[TokenBatch],
        part: &StepPart,
        step: u64,
        group: &Group,
    ) -> Result<StepGradients, TrainError> {
        let (loss, gradients) = self.part_gradients(batches, part, step);
        let (loss, gradients) = sum_over_ranks(group, loss, gradients)?;
        Ok(StepGradients::new(loss, gradients))
    }

    fn part_gradients(
        &self,
        batches: &[TokenBatch],
        part: &StepPart,
        step: u64,
    ) -> (Tensor<1>, Gradients) {
        let (seed, recompute) = (self.seed, self.recompute);
        part_gradients(self.model(), batches, part, seed, step, recompute)
    }

    /// Clips the gradients and updates the model with them.
    pub(crate) fn update(&mut self, step: StepGradients, lr: f64, max_lr: f64) {
        let gradients = step.gradients.clip(step.norm, self.clip_norm);
        if let Some(model) = self.model.take() {
            // With sole ownership, the weights are updated in place.
            self.model = Some(self.optimizer.update(model, gradients, lr, max_lr));
        }
    }

    /// The current model, on an autodiff device.
    pub fn model(&self) -> &Transformer {
        let model = self.model.as_ref();
        model.unwrap_or_else(|| unreachable!("an update always puts the model back"))
    }

    /// The current model for inference: off the autodiff graph, in f32.
    pub fn inference_model(&self) -> Transformer {
        self.model().valid().in_f32()
    }

    /// The optimizer with its moments.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }
}
