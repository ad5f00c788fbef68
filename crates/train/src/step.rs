//! Forward and backward pass, gradient accumulation and clipping.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients as BurnGradients, Tensor, Transaction};
use nextword_data::TokenBatch;
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::{Dropout, ForwardContext, NoProbe, Probe, Transformer};

use crate::reduction::{LaneSum, StepPart};

/// The gradients of all parameters by name: flat, off the autodiff graph.
#[derive(Clone, Debug)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor<1>>,
    /// Factor on all gradients, applied by the optimizer.
    scale: f64,
}

impl Default for Gradients {
    fn default() -> Self {
        Self {
            by_name: BTreeMap::new(),
            scale: 1.0,
        }
    }
}

impl Gradients {
    /// Collects the gradients of `model`'s parameters from `gradients`.
    pub(crate) fn collect(model: &Transformer, gradients: BurnGradients) -> Self {
        let mut collector = GradientCollector {
            gradients,
            path: Vec::new(),
            collected: BTreeMap::new(),
        };
        model.visit(&mut collector);
        Self {
            by_name: collector.collected,
            ..Self::default()
        }
    }

    /// Those of the given names, not clipped.
    pub(crate) fn from_map(by_name: BTreeMap<String, Tensor<1>>) -> Self {
        Self {
            by_name,
            ..Self::default()
        }
    }

    /// Adds the gradients of another micro-batch.
    pub(crate) fn add(&mut self, other: Self) {
        for (name, gradient) in other.by_name {
            let sum = match self.by_name.remove(&name) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            self.by_name.insert(name, sum);
        }
    }

    /// The global norm of the gradients before clipping, `[1]`, on the device.
    pub fn norm(&self) -> Option<Tensor<1>> {
        nextword_kernels::sum_of_squares(self.by_name.values()).map(Tensor::sqrt)
    }

    /// Clips the global norm, currently `norm`, to `max_norm`; 0 disables clipping. As in `PyTorch`,
    /// the factor is `max_norm / (norm + 1e-6)`, at most 1.
    ///
    /// # Example
    ///
    /// ```
    /// use nextword_train::Gradients;
    ///
    /// let gradients = Gradients::default();
    /// assert!((gradients.clone().clip(4.0, 1.0).scale() - 0.25).abs() < 1e-6);
    /// assert_eq!(gradients.clone().clip(0.5, 1.0).scale(), 1.0); // small ones stay
    /// assert_eq!(gradients.clip(4.0, 0.0).scale(), 1.0); // 0 disables clipping
    /// ```
    #[must_use]
    pub fn clip(self, norm: f64, max_norm: f64) -> Self {
        if max_norm == 0.0 {
            return self;
        }
        Self {
            scale: (max_norm / (norm + 1e-6)).min(1.0),
            ..self
        }
    }

    /// The factor that clipping applies to all gradients.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Iterates over the names, in order, and the flat gradients before clipping.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.by_name.iter().map(|(name, g)| (name.as_str(), g))
    }

    pub(crate) fn into_map(self) -> BTreeMap<String, Tensor<1>> {
        self.by_name
    }
}

struct GradientCollector {
    gradients: BurnGradients,
    path: Vec<String>,
    collected: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for GradientCollector {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if let Some(gradient) = tensor.grad_remove(&mut self.gradients) {
            let len = tensor.dims().iter().product::<usize>();
            self.collected
                .insert(self.path.join("."), gradient.reshape([len]));
        }
    }
}

/// Computes the mean loss over all targets of `batches` (nats per token, `[1]`, on the device) and its
/// gradients. `model` is on an autodiff device.
///
/// Each micro-batch's loss is divided by the number of targets of the whole step, so that gradient
/// accumulation over unequal micro-batches equals one big batch. `seed` and `step` determine the
/// dropout masks. With `recompute`, only the input of each block is saved for the backward pass; the
/// result is the same.
///
/// # Example
///
/// ```
/// use burn::{module::Module, tensor::Device};
/// use nextword_data::TokenBatch;
/// use nextword_model::presets;
/// use nextword_train::forward_backward;
///
/// let model = presets::statquest(5).init(&Device::flex(), 7)?.train(); // on an autodiff device
/// let rows = |inputs: &[u32], targets: &[u32]| TokenBatch {
///     batch: 1, seq: inputs.len(), inputs: inputs.to_vec(), targets: targets.to_vec(), ..TokenBatch::default()
/// };
/// let batches = [rows(&[0, 1, 2], &[1, 2, 4]), rows(&[2, 1], &[1, 0])]; // two micro-batches
/// let (loss, gradients) = forward_backward(&model, &batches, 7, 0, false);
/// assert!(loss.into_scalar::<f32>() > 0.0); // nats per token, over all five targets
/// let names: Vec<&str> = gradients.iter().map(|(name, _)| name).collect();
/// assert_eq!(names[0], "blocks.0.attention.key.weight");
/// # Ok::<(), nextword_model::ModelError>(())
/// ```
pub fn forward_backward(
    model: &Transformer,
    batches: &[TokenBatch],
    seed: u64,
    step: u64,
    recompute: bool,
) -> (Tensor<1>, Gradients) {
    let part = StepPart::whole(batches);
    part_gradients(model, batches, &part, seed, step, recompute)
}

/// As [`forward_backward`], of the part of a step that this rank computes.
pub(crate) fn part_gradients(
    model: &Transformer,
    batches: &[TokenBatch],
    part: &StepPart,
    seed: u64,
    step: u64,
    recompute: bool,
) -> (Tensor<1>, Gradients) {
    let mut sum = LaneSum::new(part);
    let mut first_sequence = part.first_sequence;
    for batch in batches {
        let dropout = Dropout::training(seed, step, first_sequence);
        let divisor = part.target_count.max(1) as f64;
        let device = model.device().without_autodiff();
        let context =
            || batch_context(ForwardContext::<NoProbe>::training(dropout), batch, &device);
        let (loss, gradients) = if recompute {
            let (tokens, targets) = (batch_tokens(batch, &device), &batch.targets);
            // Summed separately first: the order of additions is the same as without `recompute`.
            let mut batch_gradients = Gradients::default();
            let loss = model.loss_with_recompute(tokens, targets, divisor, context, |part| {
                batch_gradients.add(Gradients::collect(model, part));
            });
            (loss, batch_gradients)
        } else {
            let loss = model.loss_sum(batch_tokens(batch, &device), &batch.targets, &mut context())
                / divisor;
            let gradients = Gradients::collect(model, loss.backward());
            (loss.inner(), gradients)
        };
        sum.push(loss, gradients);
        first_sequence += batch.batch;
    }
    sum.finish().unwrap_or_else(|| {
        let zero = Tensor::zeros([1], &model.device().without_autodiff());
        (zero, Gradients::default())
    })
}

/// The sum of the losses over the targets of one micro-batch.
pub(crate) fn batch_loss<P: Probe>(
    model: &Transformer,
    batch: &TokenBatch,
    ctx: ForwardContext<'_, P>,
) -> Tensor<1> {
    let device = model.device().without_autodiff();
    let mut ctx = batch_context(ctx, batch, &device);
    model.loss_sum(batch_tokens(batch, &device), &batch.targets, &mut ctx)
}

/// Reads two scalars from the device in one transfer.
pub(crate) fn read_scalars(a: Tensor<1>, b: Tensor<1>) -> [f64; 2] {
    let values = Transaction::default().register(a).register(b).execute();
    let mut scalars = values
        .into_iter()
        .map(|data| nextword_model::weights::to_f32_vec(data).first().copied());
    let mut next = || f64::from(scalars.next().flatten().unwrap_or(f32::NAN));
    [next(), next()]
}
