//! Optimizer updates, without the loop around them.

use std::sync::OnceLock;

use burn::module::Module;
use burn::tensor::Tensor;
use nextword_base::hash::sha256_hex;
use nextword_data::TokenBatch;
use nextword_model::Transformer;
use nextword_parallel::{Group, ParallelError, Shards};

use crate::optimizer::with_weights;
use crate::ranks::{Exchanged, GradientExchange, ShardLayout};
use crate::reduction::StepPart;
use crate::step::{part_gradients, read_scalars, send_part_gradients};
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
    /// How the ranks share the moments; `None` if each has all of them.
    shards: Option<Shards>,
    /// Names and lengths of the gradients that the ranks exchange in each step.
    layout: OnceLock<Vec<(String, usize)>>,
}

/// Loss and gradients of one step, before the update.
pub(crate) struct StepGradients {
    /// The loss, nats per token.
    pub(crate) loss: f64,
    /// Global norm of the gradients before clipping.
    pub(crate) norm: f64,
    /// The gradients, not clipped, or this rank's part of them.
    pub(crate) gradients: Gradients,
    /// How the ranks share them.
    pub(crate) sharded: Option<ShardLayout>,
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
            sharded: None,
            preferences: PreferenceMetrics::default(),
        }
    }

    /// Those of all ranks.
    fn exchanged(found: Exchanged) -> Self {
        let Some(norm) = found.norm else {
            return Self::new(found.loss, found.gradients);
        };
        let loss = nextword_model::weights::to_f32_vec(found.loss.into_data());
        Self {
            loss: loss.first().map_or(f64::NAN, |loss| f64::from(*loss)),
            norm,
            gradients: found.gradients,
            sharded: found.sharded,
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
            shards: None,
            layout: OnceLock::new(),
        }
    }

    /// Lets this rank have only its part of the moments, which `optimizer` has.
    pub(crate) fn with_shards(self, shards: Option<Shards>) -> Self {
        Self { shards, ..self }
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
        if group.size() == 1 {
            let (loss, gradients) = self.part_gradients(batches, part, step);
            return Ok(StepGradients::new(loss, gradients));
        }
        let mut exchange = GradientExchange::new(group, self.shards.as_ref());
        let (model, random) = (self.model(), (self.seed, step));
        let loss = send_part_gradients(
            model,
            batches,
            part,
            random,
            self.recompute,
            |name, gradient| exchange.send(name, gradient),
        )?;
        let layout = exchange.layout().to_vec();
        let found = exchange.finish(loss)?;
        self.check_layout(layout, group)?;
        Ok(StepGradients::exchanged(found))
    }

    /// Checks that all ranks exchange the same gradients in the same order in each step.
    fn check_layout(&self, layout: Vec<(String, usize)>, group: &Group) -> Result<(), TrainError> {
        let subject = "the gradients that it computes";
        let hint = "please report this";
        match self.layout.get() {
            Some(first) if *first == layout => Ok(()),
            Some(_) => Err(ParallelError::Differs {
                rank: group.name(group.rank()),
                subject: subject.to_string(),
                problem: format!("they differ from those of the first step; hint: {hint}"),
            }
            .into()),
            None => {
                let hash = sha256_hex(format!("{layout:?}").as_bytes());
                group.check_equal(&format!("{subject} (SHA-256)"), &hash, hint)?;
                self.layout.get_or_init(|| layout);
                Ok(())
            }
        }
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

    /// As [`update`](Self::update), on all ranks. With shards, each updates its part and gets the others.
    pub(crate) fn update_on_ranks(
        &mut self,
        mut step: StepGradients,
        lr: f64,
        max_lr: f64,
        group: &Group,
    ) -> Result<(), TrainError> {
        let (Some(shards), Some(layout), Some(model)) =
            (&self.shards, step.sharded.take(), &self.model)
        else {
            self.update(step, lr, max_lr);
            return Ok(());
        };
        let gradients = step.gradients.clip(step.norm, self.clip_norm);
        let shard = (shards, group.rank());
        let own = self
            .optimizer
            .update_shard(model, gradients, shard, lr, max_lr);
        let weights = layout.collect(group, shards, &own)?;
        self.model = self.model.take().map(|model| with_weights(model, weights));
        Ok(())
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
