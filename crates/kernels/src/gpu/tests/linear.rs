//! Linear layers.

use burn::tensor::{Device, Distribution, Tensor};

use super::{assert_close, compare_sums, gpu, random_tensor, values};
use crate::{
    Activation, Bits, LinearFusion, LinearWeight, Precision, QuantizedMatrix, embed_quantized,
    linear_fused, linear_quantized, linear_table,
};

/// Batch, sequence and sizes of the layer: one row, few rows and many short sequences; tiles of every size with odd
/// edges, of which the last but one has several in both directions, in the gradients, too; and an inner dimension
/// that takes several launches on software adapters.
const SHAPES: [[usize; 4]; 8] = [
    [1, 1, 33, 50],
    [3, 1, 64, 17],
    [2, 3, 5, 130],
    [40, 1, 33, 50],
    [1, 40, 70, 65],
    [1, 100, 40, 200],
    [2, 150, 197, 270],
    [1, 20, 20_000, 6],
];

#[test]
fn linear_layers_and_their_gradients_agree_with_the_cpu() {
    for [batch, seq, d_in, d_out] in SHAPES {
        let rows = batch * seq;
        for (has_bias, has_residual, activation) in [
            (false, false, None),
            (true, true, None),
            (true, false, Some(Activation::Gelu)),
            (false, true, Some(Activation::Silu)),
        ] {
            let label = format!("{batch} x {seq} rows of {d_in} to {d_out}, {activation:?}");
            // The derivative of an activation is taken at a rounded sum, of `d_in` products.
            let at = if activation.is_some() { d_in } else { 0 };
            let mut inputs = vec![(rows * d_in, d_out + at), (d_in * d_out, rows + at)];
            inputs.extend(has_bias.then_some((d_out, rows + at)));
            inputs.extend(has_residual.then_some((rows * d_out, 1 + at)));
            compare_sums(&label, &inputs, d_in, |x| {
                let mut rest = x[2..].iter().cloned();
                let bias = has_bias.then(|| rest.next().unwrap());
                let fusion = LinearFusion {
                    residual: rest.next().map(|x| x.reshape([batch, seq, d_out])),
                    activation,
                };
                let weight = LinearWeight::Matrix(x[1].clone().reshape([d_in, d_out]));
                let input = x[0].clone().reshape([batch, seq, d_in]);
                linear_fused(Precision::F32, input, weight, bias, fusion)
            });
        }
    }
}

#[test]
fn products_with_a_table_and_their_gradients_agree_with_the_cpu() {
    for [batch, seq, d_in, d_out] in SHAPES {
        let rows = batch * seq;
        let label = format!("{batch} x {seq} rows of {d_in} and a table of {d_out}");
        let inputs = [(rows * d_in, d_out), (d_in * d_out, rows), (d_out, rows)];
        compare_sums(&label, &inputs, d_in, |x| {
            let table = x[1].clone().reshape([d_out, d_in]);
            let input = x[0].clone().reshape([batch, seq, d_in]);
            linear_table(Precision::F32, input, table, Some(x[2].clone()))
        });
    }
}

/// A matrix in each format that quantization chooses; of large weights, a format with bf16 scales.
fn quantized(d_in: usize, d_out: usize) -> Vec<QuantizedMatrix> {
    let mut matrices = Vec::new();
    for range in [1.0, 1e-4, 1e30] {
        let device = Device::flex();
        let weight =
            Tensor::<2>::random([d_in, d_out], Distribution::Uniform(-range, range), &device);
        for bits in [Bits::Int8, Bits::Int4] {
            matrices.push(QuantizedMatrix::from_weight(weight.clone(), bits));
        }
    }
    matrices
}

#[test]
fn products_with_quantized_weights_have_the_values_of_the_dequantized_weights() {
    let Some(gpu) = gpu() else { return };
    for [batch, seq, d_in, d_out] in &SHAPES[..6] {
        let (batch, seq, d_in, d_out) = (*batch, *seq, *d_in, *d_out);
        for matrix in quantized(d_in, d_out) {
            let label = format!(
                "{batch} x {seq} rows of {d_in} to {d_out}, {:?}",
                matrix.format()
            );
            let run = |device: &Device, weight: LinearWeight| {
                let device = device.clone().autodiff();
                let x = random_tensor(1, batch * seq * d_in, &device).require_grad();
                let bias = random_tensor(2, d_out, &device).require_grad();
                let fusion = LinearFusion {
                    residual: Some(Tensor::ones([batch, seq, d_out], &device)),
                    activation: Some(Activation::Relu),
                };
                let input = x.clone().reshape([batch, seq, d_in]);
                let y = linear_fused(Precision::F32, input, weight, Some(bias.clone()), fusion);
                let gradients = y.clone().backward();
                let gradient = |x: &Tensor<1>| values(x.grad(&gradients).unwrap());
                [values(y), gradient(&x), gradient(&bias)]
            };
            let actual = run(&gpu, LinearWeight::Quantized(matrix.clone()));
            let dense = matrix.to_tensor(&Device::flex());
            let expected = run(&Device::flex(), LinearWeight::Matrix(dense.clone()));
            for (actual, expected) in actual.iter().zip(&expected) {
                assert_close(&label, actual, expected, 1e-5);
            }
            let x = random_tensor(1, batch * seq * d_in, &gpu).reshape([batch, seq, d_in]);
            let plain = values(linear_quantized(x.clone(), &matrix, None));
            let x = random_tensor(1, batch * seq * d_in, &Device::flex());
            let x = x.reshape([batch, seq, d_in]);
            assert_close(&label, &plain, &values(crate::linear(x, dense, None)), 1e-5);
        }
    }
}

#[test]
fn quantized_tables_give_the_rows_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for matrix in quantized(33, 12) {
        let rows = |device: &Device| {
            let ids = Tensor::<2, burn::tensor::Int>::from_ints([[0, 11, 5], [7, 7, 1]], device);
            values(embed_quantized(&matrix, ids))
        };
        let label = format!("{:?}", matrix.format());
        assert_close(&label, &rows(&gpu), &rows(&Device::flex()), 1e-6);
    }
}

#[test]
fn the_bits_of_a_decoded_row_do_not_depend_on_the_others() {
    let Some(gpu) = gpu() else { return };
    let (rows, d_in, d_out) = (70, 100, 40);
    let weight = random_tensor(1, d_in * d_out, &gpu);
    let matrix = weight.clone().reshape([d_in, d_out]);
    let table = weight.reshape([d_out, d_in]);
    let on_cpu = random_tensor(1, d_in * d_out, &Device::flex()).reshape([d_in, d_out]);
    let quantized = QuantizedMatrix::from_weight(on_cpu, Bits::Int4);
    let products: [&dyn Fn(Tensor<3>) -> Tensor<3>; 3] = [
        &|x| crate::linear(x, matrix.clone(), None),
        &|x| linear_table(Precision::F32, x, table.clone(), None),
        &|x| linear_quantized(x, &quantized, None),
    ];
    let x = random_tensor(2, rows * d_in, &gpu).reshape([rows, 1, d_in]);
    for product in products {
        let all = values(product(x.clone()));
        let fifth = values(product(x.clone().narrow(0, 4, 1)));
        assert_eq!(all[4 * d_out..5 * d_out], fifth);
    }
}
