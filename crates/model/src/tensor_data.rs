//! Values of tensors on the host.

use burn::tensor::TensorData;

/// Converts `data` of any float type to f32 values.
pub fn to_f32_vec(data: TensorData) -> Vec<f32> {
    data.convert::<f32>().try_into_vec().unwrap_or_default()
}
