//! Model conversion: import from Hugging Face, export to Hugging Face and GGUF.
//!
//! Foreign names appear only in this crate, in one module per format. A foreign config field that
//! [`ModelConfig`](nextword_model::ModelConfig) cannot express is an error that names the field; only
//! fields known not to affect the logits are ignored. Weights are converted one tensor at a time, so
//! that memory never contains a second copy of the model. Pickle files are never opened.
//!
//! | task | function |
//! |---|---|
//! | import a Hugging Face folder | [`import`] |
//! | export for `transformers` | [`export_hf`] |
//! | export for `llama.cpp` | [`export_gguf`] |

mod error;
mod folder;
mod gguf;
mod hf;
mod import;
mod json;
mod mapping;

pub use error::ConvertError;
pub use gguf::{GgufType, export as export_gguf};
pub use hf::export::export as export_hf;
pub use hf::read_config_text;
pub use import::{Imported, import};

/// The largest finite value of half precision.
const F16_MAX: f32 = 65504.0;

/// Rejects values beyond `limit`, which `dtype` would turn into infinity.
fn check_range(
    tensor: &str,
    values: &[f32],
    limit: f32,
    dtype: &'static str,
) -> Result<(), ConvertError> {
    match values.iter().find(|value| value.abs() > limit) {
        Some(&value) => Err(ConvertError::TooLarge {
            tensor: tensor.to_string(),
            value,
            dtype,
            limit,
        }),
        None => Ok(()),
    }
}
