//! Cross-entropy of the next token.

use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};

/// A target that counts for nothing: padding, or a token that is not to be learned.
pub const IGNORE: u32 = u32::MAX;

/// The sum of `-ln p(target)` in nats over all places whose target is not [`IGNORE`], and how many
/// those are.
///
/// Dividing by the number of tokens of the whole step (not of this micro-batch) makes accumulation
/// equal one big batch. `logits` is `[batch, seq, vocab_size]`, `targets` `batch * seq` ids row by
/// row.
///
/// # Panics
/// If there are not `batch * seq` targets.
pub fn cross_entropy_sum(logits: Tensor<3>, targets: &[u32]) -> (Tensor<1>, usize) {
    let [batch, seq, vocab] = logits.dims();
    let n = batch * seq;
    assert_eq!(targets.len(), n, "one target for each place");
    let device = logits.device();
    let counted = targets.iter().filter(|t| **t != IGNORE).count();
    let ids: Vec<i32> = targets
        .iter()
        .map(|t| if *t == IGNORE { 0 } else { *t as i32 })
        .collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [n, 1]), &device);
    let chosen = log_softmax(logits.reshape([n, vocab]), 1).gather(1, ids); // [n, 1]
    let chosen = if counted == n {
        chosen
    } else {
        let weights: Vec<f32> = targets
            .iter()
            .map(|t| f32::from(u8::from(*t != IGNORE)))
            .collect();
        let weights = Tensor::<2>::from_data(TensorData::new(weights, [n, 1]), &device);
        let dtype = chosen.dtype();
        chosen * weights.cast(dtype)
    };
    (chosen.sum().neg(), counted)
}
