//! Model conversion: import from Hugging Face, PEFT and GGUF, export to Hugging Face, PEFT and GGUF.
//!
//! Foreign names appear only in this crate, in one module per format. A foreign config field that
//! [`ModelConfig`](nextword_model::ModelConfig) cannot express is an error that names the field; only
//! fields known not to affect the logits are ignored. Weights are converted one tensor at a time, so
//! that memory never contains a second copy of the model. Pickle files are never opened.
//!
//! | task | function |
//! |---|---|
//! | import a Hugging Face folder or a GGUF file | [`import`]; [`import_with`] options |
//! | use a GGUF file as it is | [`open_gguf`] |
//! | open a model folder, a GGUF file or an adapter | [`open_model`] |
//! | check a folder before its weights are there | [`check_settings`] |
//! | export for `transformers` | [`export_hf`] |
//! | export for `llama.cpp` | [`export_gguf`], [`export_gguf_with_embedding`] |
//! | import and export an adapter of PEFT | [`import_peft`], [`export_peft`] |
//! | export an adapter for `llama.cpp` | [`export_gguf_lora`] |
//!
//! # Example
//!
//! ```
//! use nextword_convert::{export_hf, import};
//! use nextword_model::{ModelDir, weights::FloatType};
//!
//! let folder = tempfile::tempdir()?;
//! let (foreign, back) = (folder.path().join("hf"), folder.path().join("back"));
//! let model = ModelDir::open("../../docs/models/letters".as_ref())?;
//! assert_eq!(export_hf(&model, FloatType::F32, &foreign)?, "gpt2"); // for `transformers`
//!
//! let imported = import(&foreign, &back)?;
//! assert_eq!((imported.model_type, imported.config.n_layers), ("gpt2", 2));
//! let weights = |folder: &ModelDir| std::fs::read(folder.weights_path());
//! assert_eq!(weights(&ModelDir::open(&back)?)?, weights(&model)?); // bit for bit
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chat_templates;
mod error;
mod folder;
mod gguf;
mod hf;
mod import;
mod imported;
mod json;
mod low_rank;
mod mapping;
mod open;
mod peft;
mod special_tokens;
mod tokenizer_files;

pub use error::ConvertError;
pub use gguf::import::open as open_gguf;
pub use gguf::reader::is_gguf;
pub use gguf::{
    GgufType, WRITER_KEY as GGUF_WRITER_KEY, differences as gguf_differences,
    export as export_gguf, export_with_embedding as export_gguf_with_embedding,
    lora::export as export_gguf_lora,
};
pub use hf::export::{differences as hf_differences, export as export_hf};
pub use hf::read_config_text;
pub use import::{check_settings, import, import_with};
pub use imported::{ImportOptions, Imported};
pub use open::{describe_base, find_base, is_base, open_model};
pub use peft::export::{
    ExportedPeft, export as export_peft, export_with_base_name as export_peft_with_base_name,
};
pub use peft::import::{ImportedAdapter, import as import_peft, is_peft_folder};

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
