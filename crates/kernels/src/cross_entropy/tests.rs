//! Rows that are left out, frozen weights and quantized weights.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use burn::tensor::{Device, Tensor, TensorData};

use super::fast::loss_for_rows;
use super::rows::Rows;
use super::{OutputLayer, OutputWeight, cross_entropy_sum};
use crate::cpu::testing::{Rng, assert_close, assert_same_for_any_threads, to_f64};
use crate::{Bits, IGNORE, Precision, QuantizedMatrix};

/// Targets below `vocab`, of which a share of about `ignored` is left out.
fn targets(rng: &mut Rng, rows: usize, vocab: usize, ignored: f32) -> Vec<u32> {
    let mut target = || {
        if rng.uniform() < ignored {
            IGNORE
        } else {
            rng.below(vocab) as u32
        }
    };
    (0..rows).map(|_| target()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn leaving_out_ignored_rows_changes_no_bit() {
    let mut rng = Rng(1);
    for round in 0..30 {
        let (rows, width, vocab) = (1 + rng.below(1500), 1 + rng.below(24), 2 + rng.below(60));
        let ignored = rng.pick(&[0.05, 0.5, 0.95, 1.0]);
        let targets = targets(&mut rng, rows, vocab, ignored);
        let (x, weight) = (rng.floats(rows * width), rng.floats(width * vocab));
        let chunk_rows = rng.pick(&[64, 600, 5000]);
        let all = loss_for_rows(
            Rows::all(rows, chunk_rows),
            [&x, &weight],
            &targets,
            [true; 2],
        );
        let counted = assert_same_for_any_threads(|| {
            let counted = Rows::counted(&targets, chunk_rows);
            loss_for_rows(counted, [&x, &weight], &targets, [true; 2]).concat()
        });
        assert_eq!(
            bits(&counted),
            bits(&all.concat()),
            "round {round}: {rows} rows, {ignored} ignored"
        );
    }
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let mut rng = Rng(2);
    let (rows, width, vocab) = (40, 8, 20);
    let targets = targets(&mut rng, rows, vocab, 0.3);
    let (x, weight) = (rng.floats(rows * width), rng.floats(width * vocab));
    let run = |needs_grad| loss_for_rows(Rows::all(rows, 16), [&x, &weight], &targets, needs_grad);
    let [loss, dx, dw] = run([true, false]);
    let [full_loss, full_dx, full_dw] = run([true, true]);
    assert_eq!((dw.len(), full_dw.len()), (0, width * vocab));
    assert_eq!((bits(&loss), bits(&dx)), (bits(&full_loss), bits(&full_dx)));
    let [frozen_loss, no_dx, no_dw] = run([false, false]);
    assert_eq!(
        (bits(&frozen_loss), no_dx.len(), no_dw.len()),
        (bits(&loss), 0, 0)
    );
}

/// The loss, and the gradient of the hidden states.
fn loss_and_gradient(
    hidden: &[f32],
    shape: [usize; 3],
    weight: impl Fn(&Device) -> OutputWeight,
    bias: &[f32],
    targets: &[u32],
) -> [Vec<f32>; 2] {
    let device = Device::flex().autodiff();
    let hidden = Tensor::<3>::from_data(TensorData::new(hidden.to_vec(), shape), &device);
    let hidden = hidden.require_grad();
    let layer = OutputLayer {
        weight: weight(&device),
        bias: Some(Tensor::from_data(
            TensorData::new(bias.to_vec(), [bias.len()]),
            &device,
        )),
        soft_cap: Some(30.0),
        precision: Precision::F32,
    };
    let loss = cross_entropy_sum(hidden.clone(), layer, targets);
    let gradients = (loss.clone() * 0.25).backward();
    let gradient = hidden.grad(&gradients).unwrap();
    [loss.into_data(), gradient.into_data()].map(|data| data.try_to_vec().unwrap())
}

#[test]
fn gradients_through_a_quantized_weight_are_those_of_its_values() {
    let mut rng = Rng(3);
    for bit_width in [Bits::Int8, Bits::Int4] {
        let (shape, vocab) = ([2, 30, 40], 70);
        let targets = targets(&mut rng, 60, vocab, 0.4);
        let (hidden, bias) = (rng.floats(60 * 40), rng.floats(vocab));
        let weight = TensorData::new(rng.floats(40 * vocab), [40, vocab]);
        let matrix =
            QuantizedMatrix::from_weight(Tensor::from_data(weight, &Device::flex()), bit_width);
        let run = |weight: &dyn Fn(&Device) -> OutputWeight| {
            loss_and_gradient(&hidden, shape, weight, &bias, &targets)
        };
        let quantized = run(&|_| OutputWeight::Quantized(matrix.clone()));
        let float = run(&|device| {
            let values = TensorData::new(matrix.dequantize(), [40, vocab]);
            OutputWeight::Matrix(Tensor::from_data(values, device))
        });
        for (name, (quantized, float)) in ["loss", "gradient"]
            .into_iter()
            .zip(quantized.iter().zip(&float))
        {
            assert_close(
                quantized,
                &to_f64(float),
                2e-4,
                &format!("{name}, {bit_width:?}"),
            );
        }
        let ignored = targets.iter().position(|target| *target == IGNORE).unwrap();
        assert!(
            quantized[1][ignored * 40..][..40]
                .iter()
                .all(|gradient| *gradient == 0.0)
        );
    }
}
