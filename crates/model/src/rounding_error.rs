//! How much quantizing changes the weights of a model.

use crate::Transformer;
use crate::weights::{param_readers, to_f32_vec};

impl Transformer {
    /// The norm of what quantizing changed in the matrices of the blocks, relative to their own norm: `quantized` is this
    /// quantized model. 0 if none of them is quantized.
    ///
    /// # Example
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use nextword_model::{Bits, presets};
    ///
    /// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
    /// let error = |bits| model.rounding_error(&model.clone().quantize(bits));
    /// assert!(error(Bits::Int8) > 0.001 && error(Bits::Int8) < 0.01); // 127 steps up to the largest of 32 weights
    /// assert!(error(Bits::Int4) > 0.05 && error(Bits::Int4) < 0.15); // 15 steps
    /// assert_eq!(model.rounding_error(&model), 0.0);
    /// # Ok::<(), nextword_model::ModelError>(())
    /// ```
    pub fn rounding_error(&self, quantized: &Self) -> f64 {
        let params = param_readers(self);
        let (mut error, mut size) = (0.0, 0.0);
        for (name, data) in quantized.dequantized() {
            let Some(param) = params.get(&name).filter(|_| name.starts_with("blocks.")) else {
                continue;
            };
            for (value, rounded) in to_f32_vec(param.read()).iter().zip(to_f32_vec(data)) {
                let value = f64::from(*value);
                error += (f64::from(rounded) - value).powi(2);
                size += value * value;
            }
        }
        error.sqrt() / size.sqrt().max(f64::MIN_POSITIVE)
    }
}
