//! The loss.

use burn::tensor::Device;

use super::{assert_close, compare, gpu, random_tensor, values};
use crate::gpu::cross_entropy::cross_entropy_sum;
use crate::{
    Bits, CounterRng, IGNORE, OutputLayer, OutputWeight, Precision, QuantizedMatrix, reference,
};

#[test]
fn the_loss_and_its_gradient_agree_with_the_reference() {
    let (rows, vocab) = (33, 1003);
    let targets = targets(rows, vocab);
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

/// Targets of which every fifth is ignored.
fn targets(rows: usize, vocab: usize) -> Vec<u32> {
    let rng = CounterRng::new(3);
    let target = |row: u64| match row % 5 {
        4 => IGNORE,
        _ => rng.below(row, vocab as u64) as u32,
    };
    (0..rows as u64).map(target).collect()
}

#[test]
fn the_loss_of_an_output_layer_and_its_gradients_agree_with_the_cpu() {
    let (seq, d) = (33, 20);
    // The first and the third are divided into chunks; the inner dimension of the gradient of the hidden states in the
    // last one takes several launches on software adapters.
    for (batch, vocab, is_table, has_bias, soft_cap) in [
        (2, 1003, true, false, None),
        (2, 70, false, true, Some(2.0)),
        (3, 1000, true, true, None),
        (1, 70_000, true, true, None),
    ] {
        let targets = targets(batch * seq, vocab);
        let mut lens = vec![batch * seq * d, vocab * d];
        lens.extend(has_bias.then_some(vocab));
        let label = format!("loss of {vocab} tokens");
        // Logits of 30 are rounded by 2e-6, and their probabilities relative to that.
        compare(&label, &lens, 1e-5, |x| {
            let weight = if is_table {
                OutputWeight::Table(x[1].clone().reshape([vocab, d]))
            } else {
                OutputWeight::Matrix(x[1].clone().reshape([d, vocab]))
            };
            let layer = OutputLayer {
                weight,
                bias: has_bias.then(|| x[2].clone()),
                soft_cap,
                precision: Precision::F32,
            };
            crate::cross_entropy_sum(x[0].clone().reshape([batch, seq, d]), layer, &targets)
        });
    }
}

#[test]
fn the_loss_of_a_quantized_output_layer_is_that_of_its_values() {
    let Some(gpu) = gpu() else { return };
    let (seq, d, vocab) = (9, 64, 50);
    let weight = random_tensor(2, d * vocab, &Device::flex()).reshape([d, vocab]);
    let weight = QuantizedMatrix::from_weight(weight, Bits::Int4);
    let loss = |device: &Device, weight: OutputWeight| {
        let layer = OutputLayer {
            weight,
            bias: None,
            soft_cap: None,
            precision: Precision::F32,
        };
        let hidden = random_tensor(1, seq * d, device).reshape([1, seq, d]);
        values(crate::cross_entropy_sum(
            hidden,
            layer,
            &targets(seq, vocab),
        ))
    };
    let dense = OutputWeight::Matrix(weight.to_tensor(&Device::flex()));
    let expected = loss(&Device::flex(), dense);
    assert_close(
        "loss",
        &loss(&gpu, OutputWeight::Quantized(weight)),
        &expected,
        1e-6,
    );
}
