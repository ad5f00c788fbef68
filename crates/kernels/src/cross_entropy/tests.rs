//! Rows that are left out, frozen weights and quantized weights.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use burn::tensor::{Device, Tensor, TensorData};

use super::fast::loss_for_rows;
use super::rows::Rows;
use super::{OutputLayer, OutputWeight, cross_entropy_per_sequence, cross_entropy_sum};
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

/// A batch whose sequences are weighted in the gradient.
struct Weighted {
    shape: [usize; 3],
    vocab: usize,
    hidden: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    soft_cap: Option<f64>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl Weighted {
    fn random(rng: &mut Rng, has_bias: bool) -> Self {
        let shape @ [batch, seq, width] = [1 + rng.below(4), 1 + rng.below(40), 1 + rng.below(12)];
        let vocab = 2 + rng.below(40);
        Self {
            shape,
            vocab,
            hidden: rng.floats(batch * seq * width),
            weight: rng.floats(width * vocab),
            bias: has_bias.then(|| rng.floats(vocab)),
            soft_cap: rng.pick(&[None, Some(3.0)]),
            targets: targets(rng, batch * seq, vocab, 0.4),
            weights: rng.floats(batch),
        }
    }

    /// The losses and the gradients of hidden states, weight and bias, by the fast implementation or the reference.
    fn run(&self, is_reference: bool) -> [Vec<f32>; 4] {
        let [batch, _, width] = self.shape;
        let device = Device::flex().autodiff();
        let hidden = TensorData::new(self.hidden.clone(), self.shape);
        let hidden = Tensor::<3>::from_data(hidden, &device).require_grad();
        let weight = TensorData::new(self.weight.clone(), [width, self.vocab]);
        let weight = Tensor::<2>::from_data(weight, &device).require_grad();
        let bias = self.bias.clone().map(|bias| {
            Tensor::<1>::from_data(TensorData::new(bias, [self.vocab]), &device).require_grad()
        });
        let layer = OutputLayer {
            weight: OutputWeight::Matrix(weight.clone()),
            bias: bias.clone(),
            soft_cap: self.soft_cap,
            precision: Precision::F32,
        };
        let losses = if is_reference {
            let logits = layer.logits(hidden.clone());
            crate::reference::cross_entropy_per_sequence(logits, &self.targets)
        } else {
            cross_entropy_per_sequence(hidden.clone(), layer, &self.targets)
        };
        let weights = TensorData::new(self.weights.clone(), [batch]);
        let sum = (losses.clone() * Tensor::from_data(weights, &device)).sum();
        let gradients = sum.backward();
        let bias = bias.map(|bias| bias.grad(&gradients).unwrap().into_data());
        let found = [
            losses.into_data(),
            hidden.grad(&gradients).unwrap().into_data(),
            weight.grad(&gradients).unwrap().into_data(),
        ];
        let [losses, dx, dw] = found.map(|data| data.try_to_vec().unwrap());
        [
            losses,
            dx,
            dw,
            bias.map_or(Vec::new(), |data| data.try_to_vec().unwrap()),
        ]
    }

    /// The weighted sum of the losses in f64, with these hidden states.
    fn weighted_sum(&self, hidden: &[f64]) -> f64 {
        let [_, seq, width] = self.shape;
        let mut total = 0.0;
        for (row, target) in self
            .targets
            .iter()
            .enumerate()
            .filter(|(_, id)| **id != IGNORE)
        {
            let logits: Vec<f64> = (0..self.vocab)
                .map(|column| {
                    let weight = |i: usize| f64::from(self.weight[i * self.vocab + column]);
                    let products = (0..width).map(|i| hidden[row * width + i] * weight(i));
                    let bias = self
                        .bias
                        .as_ref()
                        .map_or(0.0, |bias| f64::from(bias[column]));
                    let logit = products.sum::<f64>() + bias;
                    self.soft_cap
                        .map_or(logit, |cap| cap * (logit / cap).tanh())
                })
                .collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            total += f64::from(self.weights[row / seq]) * (sum.ln() - logits[*target as usize]);
        }
        total
    }
}

#[test]
fn losses_and_gradients_of_sequences_match_the_reference() {
    let mut rng = Rng(4);
    for round in 0..20 {
        let case = Weighted::random(&mut rng, round % 2 == 0);
        let fast = assert_same_for_any_threads(|| case.run(false).concat());
        let expected = to_f64(&case.run(true).concat());
        assert_close(&fast, &expected, 2e-5, &format!("round {round}"));
    }
}

#[test]
fn gradients_of_weighted_sequences_match_finite_differences() {
    let mut rng = Rng(5);
    for round in 0..6 {
        let case = Weighted::random(&mut rng, round % 2 == 0);
        let [_, dx, ..] = case.run(false);
        let (x, step) = (to_f64(&case.hidden), 1e-4);
        for i in (0..8).map(|_| rng.below(x.len())) {
            let [up, down] = [step, -step].map(|step| {
                let mut perturbed = x.clone();
                perturbed[i] += step;
                case.weighted_sum(&perturbed)
            });
            let slope = (up - down) / (2.0 * step);
            assert_close(
                &[dx[i]],
                &[slope],
                1e-5,
                &format!("round {round}, element {i}"),
            );
        }
    }
}

#[test]
fn the_loss_of_a_sequence_does_not_depend_on_the_others() {
    let mut rng = Rng(6);
    let case = Weighted {
        shape: [3, 40, 12],
        ..Weighted::random(&mut rng, false)
    };
    let (hidden, weight) = (rng.floats(3 * 40 * 12), rng.floats(12 * 30));
    let targets = targets(&mut rng, 3 * 40, 30, 0.3);
    let all = Weighted {
        vocab: 30,
        hidden: hidden.clone(),
        weight,
        targets: targets.clone(),
        weights: vec![1.0; 3],
        ..case
    };
    let [losses, dx, ..] = all.run(false);
    let alone = Weighted {
        shape: [1, 40, 12],
        hidden: hidden[40 * 12..2 * 40 * 12].to_vec(),
        targets: targets[40..80].to_vec(),
        weights: vec![1.0],
        ..all
    };
    let [loss, dx_alone, ..] = alone.run(false);
    assert_eq!(bits(&losses[1..2]), bits(&loss));
    assert_eq!(bits(&dx[40 * 12..2 * 40 * 12]), bits(&dx_alone));
}

#[test]
fn sequences_pass_gradients_through_a_quantized_weight() {
    let mut rng = Rng(7);
    let (shape, vocab) = ([2, 20, 32], 50);
    let targets = targets(&mut rng, 40, vocab, 0.4);
    let hidden = rng.floats(40 * 32);
    let weight = TensorData::new(rng.floats(32 * vocab), [32, vocab]);
    let weight = Tensor::from_data(weight, &Device::flex());
    let matrix = QuantizedMatrix::from_weight(weight, Bits::Int8);
    let device = Device::flex().autodiff();
    let run = |weight: OutputWeight| {
        let hidden = Tensor::<3>::from_data(TensorData::new(hidden.clone(), shape), &device);
        let hidden = hidden.require_grad();
        let layer = OutputLayer {
            weight,
            bias: None,
            soft_cap: None,
            precision: Precision::F32,
        };
        let losses = cross_entropy_per_sequence(hidden.clone(), layer, &targets);
        let weights = Tensor::<1>::from_floats([0.5, -2.0], &device);
        let gradients = (losses.clone() * weights).sum().backward();
        let gradient = hidden.grad(&gradients).unwrap();
        let found = [losses.into_data(), gradient.into_data()];
        found.map(|data| data.try_to_vec::<f32>().unwrap()).concat()
    };
    let values = TensorData::new(matrix.dequantize(), [32, vocab]);
    let float = run(OutputWeight::Matrix(Tensor::from_data(values, &device)));
    let quantized = run(OutputWeight::Quantized(matrix));
    // Activations are rounded to 16 bits; the second sequence's weight doubles the error.
    assert_close(&quantized, &to_f64(&float), 5e-4, "losses and gradient");
}
