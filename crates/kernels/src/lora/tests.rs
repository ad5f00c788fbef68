//! Values and gradients of adapted layers: the fast implementation against the reference, finite differences in f64,
//! and plain layers.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Tensor, TensorData};

use super::by_reference;
use super::fast::saved_inputs;
use crate::cpu::testing::{Rng, assert_close, to_f64};
use crate::{
    Bits, CounterRng, DropoutMask, LinearWeight, LowRankUpdate, Precision, QuantizedMatrix,
    RowUpdate, add_row_updates, linear, linear_lora,
};

/// An adapted layer and a factor for each element of its output.
struct Case {
    shape: [usize; 3],
    d_out: usize,
    rank: usize,
    scale: f32,
    rate: f64,
    bits: Option<Bits>,
    /// `x`, the weight, the bias, `A`, `B` and the factor of the output.
    values: [Vec<f32>; 6],
}

/// The implementation under test, or its reference.
type Layer = fn(Precision, Tensor<3>, LinearWeight, Option<Tensor<1>>, LowRankUpdate) -> Tensor<3>;

impl Case {
    fn random(rng: &mut Rng) -> Self {
        let seq = rng.pick(&[1, 7, 8, 9, 33]);
        let (d_in, d_out) = (1 + rng.below(70), 1 + rng.below(50));
        let shape = [1 + rng.below(3), seq, d_in];
        let rank = 1 + rng.below(d_in.min(d_out).min(20));
        let rows = shape[0] * seq;
        let lengths = [
            rows * d_in,
            d_in * d_out,
            d_out,
            d_in * rank,
            rank * d_out,
            rows * d_out,
        ];
        Self {
            shape,
            d_out,
            rank,
            scale: rng.pick(&[0.5, 2.0]),
            rate: rng.pick(&[0.0, 0.4]),
            bits: rng.pick(&[None, None, Some(Bits::Int8), Some(Bits::Int4)]),
            values: lengths.map(|len| rng.floats(len)),
        }
    }

    fn mask(&self) -> DropoutMask {
        DropoutMask {
            rng: CounterRng::new(3),
            rate: self.rate,
            offset: 5,
        }
    }

    fn label(&self) -> String {
        let Self {
            shape,
            d_out,
            rank,
            rate,
            bits,
            ..
        } = self;
        format!("{shape:?} to {d_out}, rank {rank}, dropout {rate}, {bits:?}")
    }

    fn matrix(&self, index: usize, shape: [usize; 2], device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values[index].clone(), shape), device)
    }

    /// The quantized weight, if the case has one.
    fn quantized(&self) -> Option<QuantizedMatrix> {
        let weight = self.matrix(1, [self.shape[2], self.d_out], &Device::flex());
        Some(QuantizedMatrix::from_weight(weight, self.bits?))
    }

    /// The output, and the gradients of `x`, the bias, `A` and `B`.
    fn run(&self, layer: Layer) -> Vec<Vec<f32>> {
        let device = Device::flex().autodiff();
        let ([batch, seq, d_in], d_out) = (self.shape, self.d_out);
        let matrix = |index, shape| self.matrix(index, shape, &device);
        let x = matrix(0, [batch * seq, d_in]).reshape(self.shape).detach();
        let x = x.require_grad();
        let bias = matrix(2, [1, d_out])
            .reshape([d_out])
            .detach()
            .require_grad();
        let a = matrix(3, [d_in, self.rank]).require_grad();
        let b = matrix(4, [self.rank, d_out]).require_grad();
        let weight = match self.quantized() {
            Some(weight) => LinearWeight::Quantized(weight),
            None => LinearWeight::Matrix(matrix(1, [d_in, d_out])),
        };
        let update = LowRankUpdate {
            a: a.clone(),
            b: b.clone(),
            scale: self.scale,
            dropout: Some(self.mask()),
        };
        let y = layer(
            Precision::F32,
            x.clone(),
            weight,
            Some(bias.clone()),
            update,
        );
        let factor = matrix(5, [batch * seq, d_out]).reshape([batch, seq, d_out]);
        let gradients = (y.clone() * factor).sum().backward();
        let to_vec = |data: TensorData| data.try_to_vec::<f32>().unwrap();
        vec![
            to_vec(y.into_data()),
            to_vec(x.grad(&gradients).unwrap().into_data()),
            to_vec(bias.grad(&gradients).unwrap().into_data()),
            to_vec(a.grad(&gradients).unwrap().into_data()),
            to_vec(b.grad(&gradients).unwrap().into_data()),
        ]
    }

    /// The sum of the output times its factors, in f64, for other values of `A` and `B`.
    fn loss(&self, a: &[f64], b: &[f64]) -> f64 {
        let [batch, seq, d_in] = self.shape;
        let (d_out, rank) = (self.d_out, self.rank);
        let factors = self.mask().factors(batch * seq * d_in);
        let mut sum = 0.0;
        for row in 0..batch * seq {
            let x = |i: usize| f64::from(self.values[0][row * d_in + i]);
            let dropped = |i: usize| x(i) * f64::from(factors[row * d_in + i]);
            let low: Vec<f64> = (0..rank)
                .map(|r| (0..d_in).map(|i| dropped(i) * a[i * rank + r]).sum())
                .collect();
            for j in 0..d_out {
                let base: f64 = (0..d_in)
                    .map(|i| x(i) * f64::from(self.values[1][i * d_out + j]))
                    .sum();
                let update: f64 = (0..rank).map(|r| low[r] * b[r * d_out + j]).sum();
                let y = base + f64::from(self.values[2][j]) + f64::from(self.scale) * update;
                sum += y * f64::from(self.values[5][row * d_out + j]);
            }
        }
        sum
    }
}

#[test]
fn the_fast_layer_equals_the_reference() {
    let mut rng = Rng(1);
    for _ in 0..40 {
        let case = Case::random(&mut rng);
        let (fast, slow) = (case.run(linear_lora), case.run(by_reference));
        let names = ["output", "x", "bias", "A", "B"];
        for (name, (fast, slow)) in names.into_iter().zip(fast.iter().zip(&slow)) {
            // The product with quantized weights rounds its inputs to 16 bits; the gradients do not.
            let tolerance = if name == "output" && case.bits.is_some() {
                1e-3
            } else {
                2e-4
            };
            assert_close(
                fast,
                &to_f64(slow),
                tolerance,
                &format!("{name} of {}", case.label()),
            );
        }
    }
}

#[test]
fn gradients_of_the_factors_equal_finite_differences() {
    let mut rng = Rng(2);
    for _ in 0..10 {
        let mut case = Case::random(&mut rng);
        case.bits = None;
        let results = case.run(linear_lora);
        let (a, b) = (to_f64(&case.values[3]), to_f64(&case.values[4]));
        // The loss is linear in each factor, so that a difference is its slope.
        let slope = |values: &[f64], i: usize, loss: &dyn Fn(&[f64]) -> f64| {
            let mut changed = values.to_vec();
            changed[i] += 1.0;
            loss(&changed) - loss(values)
        };
        for _ in 0..20 {
            let (i, j) = (rng.below(a.len()), rng.below(b.len()));
            let of_a = slope(&a, i, &|a| case.loss(a, &b));
            let of_b = slope(&b, j, &|b| case.loss(&a, b));
            let label = case.label();
            assert_close(&[results[3][i]], &[of_a], 1e-3, &format!("A of {label}"));
            assert_close(&[results[4][j]], &[of_b], 1e-3, &format!("B of {label}"));
        }
    }
}

#[test]
fn with_b_zero_the_output_has_the_bits_of_the_plain_layer() {
    let mut rng = Rng(3);
    for _ in 0..20 {
        let mut case = Case::random(&mut rng);
        case.values[4].fill(0.0);
        let device = Device::flex();
        let ([batch, seq, d_in], d_out) = (case.shape, case.d_out);
        let x = case
            .matrix(0, [batch * seq, d_in], &device)
            .reshape(case.shape);
        let bias = case.matrix(2, [1, d_out], &device).reshape([d_out]);
        let plain = match case.quantized() {
            Some(weight) => crate::linear_quantized(x, &weight, Some(bias)),
            None => linear(x, case.matrix(1, [d_in, d_out], &device), Some(bias)),
        };
        let plain: Vec<f32> = plain.into_data().try_to_vec().unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            bits(&case.run(linear_lora)[0]),
            bits(&plain),
            "{}",
            case.label()
        );
    }
}

#[test]
fn a_frozen_layer_without_trained_factor_a_does_not_keep_its_input() {
    // `x`, the weight, the bias, `A` and `B`.
    assert_eq!(
        saved_inputs([true, false, false, true, true]),
        [true, true, false, true, true]
    );
    assert_eq!(
        saved_inputs([false, false, false, true, true]),
        [true, false, false, false, true]
    );
    assert_eq!(
        saved_inputs([true, false, false, false, false]),
        [false, true, false, true, true]
    );
}

/// An input, an output and updates of some of their rows.
fn row_case(rng: &mut Rng) -> (Tensor<3>, Tensor<3>, Vec<RowUpdate>) {
    let device = Device::flex();
    let [d_in, d_out] = [1 + rng.below(70), 1 + rng.below(50)];
    let (batch, seq) = (1 + rng.below(7), rng.pick(&[1, 8, 9, 33]));
    let mut tensor = |shape: [usize; 3]| {
        let values = rng.floats(shape.iter().product());
        Tensor::<3>::from_data(TensorData::new(values, shape), &device)
    };
    let (x, y) = (tensor([batch, seq, d_in]), tensor([batch, seq, d_out]));
    let updates = (0..3).map(|number| {
        let rank = 1 + number * 5;
        let mut matrix = |shape: [usize; 2]| tensor([1, shape[0], shape[1]]).squeeze_dim::<2>(0);
        RowUpdate {
            rows: (0..batch).filter(|row| row % 4 == number).collect(),
            update: LowRankUpdate {
                a: matrix([d_in, rank]),
                b: matrix([rank, d_out]),
                scale: 0.5 + number as f32,
                dropout: None,
            },
        }
    });
    let updates = updates.filter(|update| !update.rows.is_empty()).collect();
    (x, y, updates)
}

#[test]
fn updates_of_rows_equal_the_reference() {
    let mut rng = Rng(4);
    for _ in 0..30 {
        let (x, y, updates) = row_case(&mut rng);
        let fast = add_row_updates(y.clone(), x.clone(), &updates);
        let slow = super::rows::reference(y, x, &updates);
        let [fast, slow] = [fast, slow].map(|y| y.into_data().try_to_vec::<f32>().unwrap());
        assert_close(&fast, &to_f64(&slow), 2e-4, "rows");
    }
}

#[test]
fn a_row_gets_the_bits_of_a_layer_with_its_update_alone() {
    let mut rng = Rng(5);
    for _ in 0..30 {
        let (x, _, updates) = row_case(&mut rng);
        let [batch, _, d_in] = x.dims();
        let d_out = updates[0].update.b.dims()[1];
        let bits = rng.pick(&[None, Some(Bits::Int8)]);
        let weight = TensorData::new(rng.floats(d_in * d_out), [d_in, d_out]);
        let weight = Tensor::<2>::from_data(weight, &Device::flex());
        let weight = match bits {
            Some(bits) => LinearWeight::Quantized(QuantizedMatrix::from_weight(weight, bits)),
            None => LinearWeight::Matrix(weight),
        };
        let plain = |x: Tensor<3>| match &weight {
            LinearWeight::Quantized(weight) => crate::linear_quantized(x, weight, None),
            LinearWeight::Matrix(weight) => linear(x, weight.clone(), None),
        };
        let mixed = add_row_updates(plain(x.clone()), x.clone(), &updates);
        for row in 0..batch {
            let x = x.clone().narrow(0, row, 1);
            let update = updates.iter().find(|update| update.rows.contains(&row));
            let alone = match update {
                Some(RowUpdate { update, .. }) => {
                    linear_lora(Precision::F32, x, weight.clone(), None, update.clone())
                }
                None => plain(x),
            };
            let bits = |y: Tensor<3>| -> Vec<u32> {
                let values: Vec<f32> = y.into_data().try_to_vec().unwrap();
                values.iter().map(|value| value.to_bits()).collect()
            };
            assert_eq!(
                bits(mixed.clone().narrow(0, row, 1)),
                bits(alone),
                "row {row}"
            );
        }
    }
}
