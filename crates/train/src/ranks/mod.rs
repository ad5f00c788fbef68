//! Training on several ranks: what they exchange in each step.
//!
//! Each rank computes the micro-batches of its lanes, and all make the same update with the summed gradients, or each the
//! update of its shard. Rank 0 keeps the run's files; the others have the same weights and state in memory.

mod exchange;
mod moments;
mod sharded;
mod start;

use std::ops::ControlFlow;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use nextword_base::hash::{sha256, sha256_hex};
use nextword_data::{EvalWindows, TokenBatch};
use nextword_eval::{BatchLoss, LossReport};
use nextword_model::{Transformer, weights};
use nextword_parallel::Group;

use crate::TrainError;

pub(crate) use exchange::{Exchanged, GradientExchange};
pub(crate) use moments::{
    MomentTensor, ShardedMoments, begin_gathering, end_gathering, serve_moments,
};
pub(crate) use sharded::ShardLayout;
pub use start::check_same_program;
use start::hash_of_windows;
pub(crate) use start::{Start, check_agreement, share_start};

/// Numbers that are exchanged at once: 4 MiB, so that packing, adding and sending overlap.
const BUCKET: usize = 1 << 20;

/// Batches of each rank after which the ranks of an evaluation exchange their losses, and whether one was asked to stop.
const EVALUATED_AT_ONCE: usize = 4;

/// What the ranks know about a step before they compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepAgreement {
    /// Number of targets of all micro-batches of the step.
    pub(crate) target_count: usize,
    /// Whether a rank was asked to stop.
    pub(crate) stop: bool,
}

impl StepAgreement {
    /// Exchanges the targets of this rank's `batches`, and whether it was asked to `stop`.
    pub(crate) fn reach(
        group: &Group,
        batches: &[TokenBatch],
        stop: bool,
    ) -> Result<Self, TrainError> {
        let targets: usize = batches.iter().map(TokenBatch::target_count).sum();
        let mut message = (targets as u64).to_le_bytes().to_vec();
        message.push(u8::from(stop));
        let all = group.gather(message)?;
        Ok(Self {
            target_count: all.iter().map(|bytes| number(bytes)).sum::<u64>() as usize,
            stop: all.iter().any(|bytes| bytes.last() == Some(&1)),
        })
    }
}

/// The number in the first eight bytes of a message.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |first| u64::from_le_bytes(*first))
}

/// The loss of `model` over `windows`, `rows` rows at a time, shared by the ranks of `group`: all get the bits of one
/// process. All must have the same model and windows.
///
/// # Errors
/// [`TrainError::Parallel`] if a rank has another model or other tokens, or is gone; [`TrainError::Eval`] if the windows do
/// not fit the model.
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{EvalWindows, Packing, Tokens};
/// use nextword_model::presets;
/// use nextword_parallel::Group;
/// use nextword_train::evaluate_on_ranks;
///
/// let model = presets::statquest(5).init(&Device::flex(), 7)?;
/// let windows = EvalWindows::new(Tokens::from_ids([1, 2, 3].repeat(10)), 6, Packing::Packed, 0)?;
/// let report = evaluate_on_ranks(&Group::alone(), &model, &windows, 2)?;
/// assert_eq!(report.tokens, 29);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn evaluate_on_ranks(
    group: &Group,
    model: &Transformer,
    windows: &EvalWindows,
    rows: usize,
) -> Result<LossReport, TrainError> {
    if group.size() > 1 {
        let tokens = hash_of_windows(windows, rows)?;
        let hint = "copy the same text and tokenizer to each machine";
        group.check_equal("the tokens (SHA-256)", &tokens, hint)?;
        let hint = "copy the same model to each machine";
        group.check_equal("the weights (SHA-256)", &weights::hash(model), hint)?;
    }
    evaluate(group, model, windows, rows, &mut |_, _| {
        ControlFlow::Continue(())
    })
}

/// The loss over `windows`, whose batches are dealt to the ranks in turn and summed in their order, as by one process.
/// `on_batch` is called before each batch of this rank, with the number of those before it and of all.
///
/// # Errors
/// [`TrainError::Interrupted`] on all ranks if `on_batch` breaks on one: on the others after a few batches.
pub(crate) fn evaluate(
    group: &Group,
    model: &Transformer,
    windows: &EvalWindows,
    rows: usize,
    on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<LossReport, TrainError> {
    let (rank, size) = (group.rank(), group.size());
    let count = windows.len().div_ceil(rows.max(1));
    let own_count = count.saturating_sub(rank).div_ceil(size);
    let mut losses =
        nextword_eval::batch_losses(model, windows, rows, |batch| batch % size == rank);
    let mut evaluated = Vec::with_capacity(count);
    for first in (0..count.div_ceil(size)).step_by(EVALUATED_AT_ONCE) {
        let end = first + EVALUATED_AT_ONCE;
        let mut message = Vec::with_capacity(16 * EVALUATED_AT_ONCE + 1);
        let mut stop = false;
        for number in first..own_count.min(end) {
            stop = on_batch(number, own_count).is_break();
            if stop {
                break;
            }
            let Some(batch) = losses.next().transpose()? else {
                break;
            };
            message.extend(batch.nats.to_le_bytes());
            message.extend(batch.tokens.to_le_bytes());
        }
        message.push(u8::from(stop));
        // A rank that was asked to stop waits for the batches of the others, and saves then.
        group.expect_save();
        let all = group.gather(message)?;
        if all.iter().any(|bytes| bytes.last() == Some(&1)) {
            return Err(TrainError::Interrupted);
        }
        let mut ranks: Vec<_> = all.iter().map(|bytes| bytes.chunks_exact(16)).collect();
        let batches = first * size..count.min(end * size);
        evaluated.extend(batches.filter_map(|batch| {
            let bytes = ranks[batch % size].next()?;
            Some(BatchLoss {
                nats: f64::from_bits(number(bytes)),
                tokens: number(&bytes[8..]),
            })
        }));
    }
    Ok(LossReport::of_batches(evaluated))
}

/// The decision of rank 0, on all ranks.
pub(crate) fn decision_of_first(group: &Group, decision: bool) -> Result<bool, TrainError> {
    let bytes = group.broadcast(vec![u8::from(decision)])?;
    Ok(bytes == [1])
}

/// The result of what rank 0 does alone, on all ranks as far as it is a stop. Other errors end the group.
pub(crate) fn stopped_by_first(
    group: &Group,
    result: Result<(), TrainError>,
) -> Result<(), TrainError> {
    let stopped = match result {
        Err(TrainError::Interrupted) => true,
        other => {
            other?;
            false
        }
    };
    if decision_of_first(group, stopped)? {
        Err(TrainError::Interrupted)
    } else {
        Ok(())
    }
}

/// The first description that a rank has, in their order.
pub(crate) fn first_description(
    group: &Group,
    own: Option<String>,
) -> Result<Option<String>, TrainError> {
    let all = group.gather(own.unwrap_or_default().into_bytes())?;
    let first = all.into_iter().find(|bytes| !bytes.is_empty());
    Ok(first.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The description that comes first in the alphabet, of those that the ranks have.
pub(crate) fn least_description(
    group: &Group,
    own: Option<String>,
) -> Result<Option<String>, TrainError> {
    let all = group.gather(own.unwrap_or_default().into_bytes())?;
    let least = all.into_iter().filter(|bytes| !bytes.is_empty()).min();
    Ok(least.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Hashes the parameters that are trained.
struct TrainedHasher {
    hashes: Vec<u8>,
}

impl ModuleVisitor for TrainedHasher {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if tensor.is_require_grad() {
            self.hashes.extend(sha256(tensor.into_data().as_bytes()));
        }
    }
}

/// Checks that all ranks have the same trained weights, bit for bit.
pub(crate) fn check_same_weights(group: &Group, model: &Transformer) -> Result<(), TrainError> {
    if group.size() == 1 {
        return Ok(());
    }
    let mut hasher = TrainedHasher { hashes: Vec::new() };
    model.visit(&mut hasher);
    let hash = sha256_hex(&hasher.hashes);
    let hint = "continue from the last checkpoint with `nextword resume`; if it happens again, test that machine's memory";
    Ok(group.check_equal("the weights (SHA-256)", &hash, hint)?)
}

#[cfg(test)]
pub(crate) mod tests;
