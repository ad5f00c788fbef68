//! Shapes that do not match panic, with a sentence that names them; gradients of quantized layers.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData, Tolerance};

use crate::{
    Activation, Bits, LinearWeight, LowRankUpdate, NormKind, OutputLayer, OutputWeight, Precision,
    QuantizedMatrix, RotaryTables, cross_entropy_sum, embed, gate, linear, linear_lora,
    linear_quantized, linear_table, linear_with_precision, normalize, rotate, write_cache,
};

fn zeros<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::zeros(shape, &Device::flex())
}

fn output_layer(weight: OutputWeight, bias: Option<Tensor<1>>) -> OutputLayer {
    OutputLayer {
        weight,
        bias,
        soft_cap: None,
        precision: Precision::F32,
    }
}

#[test]
#[should_panic(expected = "the input has 2 features, but the weight maps 3 features to 4")]
fn linear_with_a_narrow_input_panics() {
    let _ = linear(zeros([1, 1, 2]), zeros([3, 4]), None);
}

#[test]
#[should_panic(expected = "the bias has 3 elements, but the weight maps 3 features to 4")]
fn linear_with_a_short_bias_panics() {
    let _ = linear(zeros([1, 1, 3]), zeros([3, 4]), Some(zeros([3])));
}

#[test]
#[should_panic(expected = "the input has 4 features, but the weight maps 3 features to 4")]
fn bf16_linear_with_a_wide_input_panics() {
    let _ = linear_with_precision(Precision::Bf16, zeros([1, 9, 4]), zeros([3, 4]), None);
}

#[test]
#[should_panic(expected = "the input has 4 features, but the weight maps 3 features to 4")]
fn a_table_of_another_width_panics() {
    let _ = linear_table(Precision::F32, zeros([1, 1, 4]), zeros([4, 3]), None);
}

#[test]
#[should_panic(expected = "the input has 4 features, but the weight maps 3 features to 4")]
fn a_quantized_weight_of_another_width_panics() {
    let weight = QuantizedMatrix::from_weight(zeros([3, 4]), Bits::Int8);
    let _ = linear_quantized(zeros([1, 9, 4]), &weight, None);
}

#[test]
#[should_panic(expected = "the input has 2 features, but the weight maps 3 features to 5")]
fn a_loss_of_narrow_hidden_states_panics() {
    let layer = output_layer(OutputWeight::Matrix(zeros([3, 5])), None);
    let _ = cross_entropy_sum(zeros([1, 2, 2]), layer, &[0, 1]);
}

#[test]
#[should_panic(expected = "the bias has 3 elements, but the weight maps 3 features to 5")]
fn a_loss_with_a_short_bias_panics() {
    let layer = output_layer(OutputWeight::Table(zeros([5, 3])), Some(zeros([3])));
    let _ = cross_entropy_sum(zeros([1, 2, 3]), layer, &[0, 1]);
}

#[test]
#[should_panic(expected = "the input has 4 features, but the weight maps 3 features to 5")]
fn a_loss_with_a_quantized_weight_of_another_width_panics() {
    let weight = QuantizedMatrix::from_weight(zeros([3, 5]), Bits::Int4);
    let layer = output_layer(OutputWeight::Quantized(weight), None);
    let _ = cross_entropy_sum(zeros([1, 2, 4]), layer, &[0, 1]);
}

#[test]
#[should_panic(expected = "the weight of a norm has 2 elements, not 4 as the last axis")]
fn a_norm_with_a_short_weight_panics() {
    let _ = normalize(NormKind::Rms, zeros([3, 4]), zeros([2]), None, 1e-5);
}

#[test]
#[should_panic(expected = "the bias of a norm has 8 elements, not 4 as the last axis")]
fn a_norm_with_a_long_bias_panics() {
    let bias = Some(zeros([8]));
    let _ = normalize(NormKind::Layer, zeros([3, 4]), zeros([4]), bias, 1e-5);
}

#[test]
#[should_panic(expected = "gate and up projection differ in shape")]
fn a_gate_of_another_shape_panics() {
    let _ = gate(Activation::Silu, zeros([2, 3]), zeros([3, 2]));
}

#[test]
#[should_panic(expected = "token id out of range")]
fn an_id_beyond_the_table_panics() {
    let ids = Tensor::<2, Int>::from_ints([[0, 3]], &Device::flex());
    let _ = embed(zeros([3, 4]), ids);
}

#[test]
#[should_panic(expected = "heads of 4 elements do not fit tables of 2")]
fn rotating_wide_heads_panics() {
    let tables = RotaryTables::new(&[1.0], 8);
    let _ = rotate(zeros([1, 2, 1, 4]), &tables, &[0]);
}

#[test]
#[should_panic(expected = "tables of 8 positions do not cover 2 tokens from position 7 on")]
fn rotating_beyond_the_tables_panics() {
    let tables = RotaryTables::new(&[1.0], 8);
    let _ = rotate(zeros([1, 2, 1, 2]), &tables, &[7]);
}

#[test]
#[should_panic(expected = "2 position offsets for 3 rows")]
fn rotating_with_too_few_offsets_panics() {
    let tables = RotaryTables::new(&[1.0], 8);
    let _ = rotate(zeros([3, 2, 1, 2]), &tables, &[0, 1]);
}

#[test]
#[should_panic(expected = "the new tokens and the cache differ in number or size of heads")]
fn caching_other_heads_panics() {
    let _ = write_cache(zeros([2, 2, 4, 3]), zeros([1, 1, 2, 3]), &[&[0]], &[0]);
}

#[test]
#[should_panic(expected = "the pages of 1 rows and 1 starts for 2 rows")]
fn caching_with_too_few_page_lists_panics() {
    let _ = write_cache(zeros([2, 1, 4, 3]), zeros([2, 1, 2, 3]), &[&[0]], &[0]);
}

#[test]
#[should_panic(expected = "page 2 of 2")]
fn caching_in_a_page_that_does_not_exist_panics() {
    let _ = write_cache(zeros([2, 1, 4, 3]), zeros([1, 1, 2, 3]), &[&[0, 2]], &[0]);
}

#[test]
#[should_panic(expected = "2 tokens from position 7 on exceed pages for 8")]
fn caching_beyond_the_pages_panics() {
    let _ = write_cache(zeros([2, 1, 4, 3]), zeros([1, 1, 2, 3]), &[&[1, 0]], &[7]);
}

#[test]
#[should_panic(expected = "a buffer and the shape of its tensor differ in length")]
fn a_buffer_of_another_length_panics() {
    let _ = crate::fused::from_buffer(crate::fused::Buffer::zeros(5), [2, 3]);
}

#[test]
#[should_panic(
    expected = "an update of shapes [3, 2] and [1, 4] does not fit a weight of shape [3, 4]"
)]
fn an_update_of_two_ranks_panics() {
    let update = LowRankUpdate {
        a: zeros([3, 2]),
        b: zeros([1, 4]),
        scale: 1.0,
        dropout: None,
    };
    let weight = LinearWeight::Matrix(zeros([3, 4]));
    let _ = linear_lora(Precision::F32, zeros([1, 1, 3]), weight, None, update);
}

#[test]
fn gradients_through_a_quantized_layer_are_those_of_its_values() {
    let device = Device::flex().autodiff();
    let random =
        |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    for bits in [Bits::Int8, Bits::Int4] {
        let weight = random([1, 64, 48]).squeeze_dim::<2>(0).without_autodiff();
        let matrix = QuantizedMatrix::from_weight(weight, bits);
        let (x, factor) = (random([2, 10, 64]).require_grad(), random([2, 10, 48]));
        let bias = Tensor::<1>::ones([48], &device).require_grad();
        let run = |y: Tensor<3>| {
            let gradients = (y * factor.clone()).sum().backward();
            [
                x.grad(&gradients).unwrap().into_data(),
                bias.grad(&gradients).unwrap().into_data(),
            ]
        };
        let values = TensorData::new(matrix.dequantize(), [64, 48]);
        let float = Tensor::<2>::from_data(values, &device);
        let expected = run(linear(x.clone(), float, Some(bias.clone())));
        let found = run(linear_quantized(x.clone(), &matrix, Some(bias.clone())));
        for (found, expected) in found.iter().zip(&expected) {
            found.assert_approx_eq::<f32>(expected, Tolerance::absolute(1e-4));
        }
    }
}
