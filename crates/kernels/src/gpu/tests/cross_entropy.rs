//! The loss.

use super::{compare, gpu, random_tensor, values};
use crate::gpu::cross_entropy::cross_entropy_sum;
use crate::{CounterRng, IGNORE, reference};

#[test]
fn the_loss_and_its_gradient_agree_with_the_reference() {
    let (rows, vocab) = (33, 1003);
    let rng = CounterRng::new(3);
    let target = |row: u64| match row % 5 {
        4 => IGNORE,
        _ => rng.below(row, vocab as u64) as u32,
    };
    let targets: Vec<u32> = (0..rows as u64).map(target).collect();
    compare("cross-entropy", &[rows * vocab], 1e-6, |x| {
        let logits = x[0].clone().reshape([rows, vocab]) * 3.0;
        if x[0].device() == burn::tensor::Device::flex().autodiff() {
            reference::cross_entropy_sum(logits, &targets)
        } else {
            cross_entropy_sum(logits, &targets)
        }
    });
}

#[test]
fn the_loss_of_ignored_rows_is_zero() {
    let Some(gpu) = gpu() else { return };
    let logits = random_tensor(1, 10, &gpu).reshape([2, 5]);
    assert_eq!(values(cross_entropy_sum(logits, &[IGNORE; 2])), [0.0]);
}
