//! Adapters of PEFT, Hugging Face's library for parameter-efficient finetuning.
//!
//! A folder has `adapter_config.json` and `adapter_model.safetensors`. The names of the tensors say which modules are
//! adapted; the settings only give rank and scale. A setting that changes what the adapter computes and that is not
//! supported is an error, and every tensor is used or an error names it.

mod config;
mod embedding;
pub(crate) mod export;
pub(crate) mod import;
mod keys;
mod pattern;
mod problems;
mod reader;
mod saved;
mod settings;
#[cfg(test)]
mod tests;
mod write_config;
