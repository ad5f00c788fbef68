//! Models in and out: Hugging Face's folders to records, and records to them and to GGUF.
//!
//! Foreign names live here and nowhere else, each vocabulary in its own module. What a foreign
//! config asks for and [`ModelConfig`](nextword_model::ModelConfig) does not have is an error that
//! names the field; nothing is ignored unless it is known to leave the logits alone. Weights travel
//! one tensor at a time, so that memory holds no second copy of a model. No pickle is opened.
//!
//! | to read | open |
//! |---|---|
//! | a folder into a record | [`import`] |
//! | a record into a folder for `transformers` | [`export_hf`] |
//! | a record into a file for `llama.cpp` | [`export_gguf`] |

mod error;
mod folder;
mod gguf;
mod hf;
mod import;
mod json;
mod parts;

pub use error::ConvertError;
pub use gguf::{GgufType, export as export_gguf};
pub use hf::export::export as export_hf;
pub use hf::read_config_text;
pub use import::{Imported, import};

/// The largest number of half precision.
const F16_MAX: f32 = 65504.0;

/// Refuses values that `dtype`, which holds `limit` at most, would turn into infinity.
fn check_size(
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
