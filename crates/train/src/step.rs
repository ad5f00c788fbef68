//! Forward and backward pass, and gradient accumulation.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, Transaction};
use nextword_data::TokenBatch;
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::{Dropout, ForwardContext, NoProbe, Probe, Transformer};

use crate::reduction::{LaneSum, StepPart};
use crate::{Gradients, TrainError};

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
    let pass = StepPass {
        model,
        part,
        seed,
        step,
        recompute,
    };
    pass.sum(batches).finish().unwrap_or_else(|| {
        let zero = Tensor::zeros([1], &model.device().without_autodiff());
        (zero, Gradients::default())
    })
}

/// As [`part_gradients`], with the same bits, but hands over each gradient to `send` as soon as it is known, while the
/// backward pass of the last micro-batch runs. Returns the loss.
pub(crate) fn send_part_gradients(
    model: &Transformer,
    batches: &[TokenBatch],
    part: &StepPart,
    (seed, step): (u64, u64),
    recompute: bool,
    mut send: impl FnMut(String, Tensor<1>) -> Result<(), TrainError>,
) -> Result<Tensor<1>, TrainError> {
    let last = batches.split_last();
    let Some((last, earlier)) = last.filter(|_| model.supports_loss_in_parts()) else {
        let (loss, gradients) = part_gradients(model, batches, part, seed, step, recompute);
        for (name, gradient) in gradients.into_map() {
            send(name, gradient)?;
        }
        return Ok(loss);
    };
    let pass = StepPass {
        model,
        part,
        seed,
        step,
        recompute,
    };
    let sum = pass.sum(earlier);
    let mut before = sum.before_last();
    let mut used_twice = Gradients::default();
    let mut sent = Ok(());
    let earlier_sequences: usize = earlier.iter().map(|batch| batch.batch).sum();
    let first_sequence = part.first_sequence + earlier_sequences;
    let loss = pass.in_parts(first_sequence, last, |gradients| {
        let (twice, once) = gradients.partition(|name| is_used_twice(model, name));
        used_twice.add(twice);
        for (name, gradient) in once.into_map() {
            let sum = before.add(&name, Some(gradient));
            if let (Some(sum), true) = (sum, sent.is_ok()) {
                sent = send(name, sum);
            }
        }
    });
    sent?;
    let rest = used_twice.into_map().into_iter();
    let mut rest: BTreeMap<String, Option<Tensor<1>>> = rest
        .map(|(name, gradient)| (name, Some(gradient)))
        .collect();
    for name in before.names() {
        rest.entry(name).or_default();
    }
    for (name, gradient) in rest {
        if let Some(sum) = before.add(&name, gradient) {
            send(name, sum)?;
        }
    }
    Ok(before.add_loss(loss))
}

/// Whether both the first and the last part of the backward pass have a gradient of parameter `name`.
fn is_used_twice(model: &Transformer, name: &str) -> bool {
    model.config().tied_head && name.starts_with("token_embedding.")
}

/// What the forward and backward passes of a step's micro-batches have in common.
struct StepPass<'a> {
    model: &'a Transformer,
    part: &'a StepPart,
    seed: u64,
    step: u64,
    recompute: bool,
}

impl StepPass<'_> {
    /// Adds the losses and gradients of the first `batches` of the part.
    fn sum(&self, batches: &[TokenBatch]) -> LaneSum {
        let mut sum = LaneSum::new(self.part);
        let mut first_sequence = self.part.first_sequence;
        for batch in batches {
            let (loss, gradients) = self.micro_batch(first_sequence, batch);
            sum.push(loss, gradients);
            first_sequence += batch.batch;
        }
        sum
    }

    fn divisor(&self) -> f64 {
        self.part.target_count.max(1) as f64
    }

    fn context<'b>(
        &self,
        first_sequence: usize,
        batch: &'b TokenBatch,
    ) -> impl Fn() -> ForwardContext<'static, NoProbe> + use<'b> {
        let dropout = Dropout::training(self.seed, self.step, first_sequence);
        let device = self.model.device().without_autodiff();
        move || batch_context(ForwardContext::<NoProbe>::training(dropout), batch, &device)
    }

    /// Loss and gradients of one micro-batch.
    fn micro_batch(&self, first_sequence: usize, batch: &TokenBatch) -> (Tensor<1>, Gradients) {
        let model = self.model;
        if self.recompute {
            // Summed separately first: the order of additions is the same as without `recompute`.
            let mut gradients = Gradients::default();
            let loss = self.in_parts(first_sequence, batch, |part| gradients.add(part));
            return (loss, gradients);
        }
        let device = model.device().without_autodiff();
        let mut context = self.context(first_sequence, batch)();
        let loss = model.loss_sum(batch_tokens(batch, &device), &batch.targets, &mut context)
            / self.divisor();
        let gradients = Gradients::collect(model, loss.backward());
        (loss.inner(), gradients)
    }

    /// The loss of one micro-batch, whose gradients are handed over part by part.
    fn in_parts(
        &self,
        first_sequence: usize,
        batch: &TokenBatch,
        mut on_gradients: impl FnMut(Gradients),
    ) -> Tensor<1> {
        let (model, divisor) = (self.model, self.divisor());
        let tokens = batch_tokens(batch, &model.device().without_autodiff());
        let context = self.context(first_sequence, batch);
        let on_part = |part| on_gradients(Gradients::collect(model, part));
        if self.recompute {
            return model.loss_with_recompute(tokens, &batch.targets, divisor, context, on_part);
        }
        model.loss_in_parts(tokens, &batch.targets, divisor, context, on_part)
    }
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

#[cfg(test)]
mod tests;
