//! Log probabilities of the trained tokens of samples.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use burn::tensor::Tensor;
use nextword_data::{Samples, TokenBatch};
use nextword_eval::{batch_context, batch_tokens};
use nextword_model::{ForwardContext, NoProbe, Transformer, weights};

use crate::TrainError;

/// How samples are put into batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batching {
    /// Maximum number of rows.
    pub(super) rows: usize,
    /// Maximum length of a row.
    pub(super) max_length: usize,
    pub(super) padding_id: u32,
}

/// Reads the values of a tensor from its device.
pub(super) fn read(values: Tensor<1>) -> Vec<f32> {
    weights::to_f32_vec(values.into_data())
}

/// The log probability of the targets of each row of `batch`, nats. `model` is off the autodiff graph.
pub(super) fn of_rows(model: &Transformer, batch: &TokenBatch) -> Vec<f32> {
    let device = model.device().without_autodiff();
    let mut ctx = batch_context(ForwardContext::<NoProbe>::inference(), batch, &device);
    let losses = model.sequence_losses(batch_tokens(batch, &device), &batch.targets, &mut ctx);
    read(losses).into_iter().map(|loss| -loss).collect()
}

/// The log probability of the trained tokens of each of the samples `indices`, nats, in their order. Samples of similar
/// length are computed together; the result is independent of that. `on_batch` is called before each batch with the
/// number of samples that are done.
///
/// # Errors
/// [`TrainError::Interrupted`] if `on_batch` breaks.
pub(super) fn of_samples(
    model: &Transformer,
    samples: &Samples,
    indices: &[usize],
    batching: Batching,
    on_batch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<f32>, TrainError> {
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_by_key(|at| Reverse(samples.row_length(indices[*at])));
    let mut found = vec![0.0; indices.len()];
    let rows = batching.rows.max(1);
    for (number, group) in order.chunks(rows).enumerate() {
        if on_batch(number * rows).is_break() {
            return Err(TrainError::Interrupted);
        }
        let of_group: Vec<usize> = group.iter().map(|at| indices[*at]).collect();
        let batch = samples.batch(&of_group, batching.max_length, batching.padding_id)?;
        for (at, value) in group.iter().zip(of_rows(model, &batch)) {
            found[*at] = value;
        }
    }
    Ok(found)
}
