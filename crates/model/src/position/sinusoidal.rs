//! Sinusoidal position encodings.

use burn::tensor::{Device, Tensor, TensorData};

/// Returns `[context_length, d_model]`: `sin(p / 10000^(2i/d))` at even and the cosine at odd indices.
///
/// Each pair of elements has its own wavelength, from `2 pi` to `20000 pi` tokens (Vaswani et al.
/// 2017, section 3.5).
pub(crate) fn sinusoidal_table(
    context_length: usize,
    d_model: usize,
    device: &Device,
) -> Tensor<2> {
    let value = |position: usize, i: usize| {
        let frequency = 10_000_f64.powf(-((i / 2 * 2) as f64) / d_model as f64);
        let angle = position as f64 * frequency;
        if i.is_multiple_of(2) {
            angle.sin()
        } else {
            angle.cos()
        }
    };
    let values: Vec<f32> = (0..context_length)
        .flat_map(|p| (0..d_model).map(move |i| value(p, i) as f32))
        .collect();
    Tensor::from_data(TensorData::new(values, [context_length, d_model]), device)
}
