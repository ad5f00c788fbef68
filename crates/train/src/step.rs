//! Forward and backward pass, and gradient accumulation.

use burn::tensor::{Tensor, Transaction};
use nextword_data::TokenBatch;
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::{Dropout, ForwardContext, NoProbe, Probe, Transformer};

use crate::Gradients;
use crate::reduction::{LaneSum, StepPart};

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
