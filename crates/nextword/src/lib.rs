//! Train, run and explain Transformers, in Rust on [Burn](https://burn.dev).
//!
//! Three things that people do, each in one call:
//!
//! | to | use |
//! |---|---|
//! | train on a string, on documents or on a file, in memory | [`Training`] |
//! | generate text, from a model folder or a model in memory | [`LanguageModel`] |
//! | look inside: every tensor of a forward pass by name | [`LanguageModel::inspect`], [`Activations`] |
//!
//! ```
//! use nextword::prelude::*;
//!
//! # fn main() -> nextword::Result<()> {
//! let text = "One day a fox met a crow. The crow had a cheese. ".repeat(30);
//! let dataset = Dataset::from_text(&text, &TokenizerConfig::chars())?;
//! let model = Training::new(&dataset)
//!     .model(ModelConfig { n_layers: 1, d_model: 32, context_length: 32, ..ModelConfig::default() })
//!     .steps(200)
//!     .learning_rate(1e-2)
//!     .run()?;
//! let text = model.generate("The crow", &TextOptions::greedy().with_max_tokens(16))?;
//! assert!(text.starts_with(" had a cheese"));
//!
//! let activations = model.inspect("The crow")?;
//! assert_eq!(activations.attention_weights(0).unwrap().shape, [4, 8, 8]); // [head, query, key]
//! # Ok(())
//! # }
//! ```
//!
//! Everything else is in the crates below, which this one re-exports: run folders that resume bit for
//! bit ([`train`]), batched decoding ([`generate`]), derivations of any value ([`explain`]), Hugging Face
//! and GGUF files ([`convert`]), benchmarks of knowledge ([`eval`]).
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `flex` | the CPU backend (the default device) |
//! | `ndarray` | Burn's older CPU backend |
//! | `wgpu`, `vulkan`, `metal`, `cuda`, `rocm` | GPU backends |
//! | `server` | the HTTP server |
//! | `cli` | what the program needs, and the server |
//!
//! The defaults are those of the program: `cli`, `flex`, `ndarray` and `wgpu`. A library usually wants
//! only one backend: `nextword = { version = "…", default-features = false, features = ["flex"] }`.

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod activations;
mod control;
mod error;
mod language_model;
mod training;

pub use activations::{Activation, Activations};
pub use control::Control;
pub use error::{Error, Result};
pub use language_model::LanguageModel;
pub use training::Training;

pub use burn;
#[cfg(feature = "server")]
pub use nextword_chat as chat;
pub use nextword_convert as convert;
pub use nextword_data as data;
pub use nextword_eval as eval;
pub use nextword_explain as explain;
pub use nextword_generate as generate;
pub use nextword_kernels as kernels;
pub use nextword_model as model;
pub use nextword_parallel as parallel;
#[cfg(feature = "server")]
pub use nextword_server as server;
pub use nextword_train as train;

/// The types that most programs need.
pub mod prelude {
    pub use nextword_data::{Dataset, SplitConfig, Tokenizer, TokenizerConfig};
    pub use nextword_generate::{Completion, SamplingConfig, TextOptions};
    pub use nextword_model::{
        DeviceName, DropoutConfig, FeedForwardKind, Hook, ModelConfig, NormKind, Position, Probe,
        Site, presets,
    };
    pub use nextword_train::{
        OptimizerConfig, OptimizerKind, RunConfig, ScheduleConfig, ScheduleKind, TrainConfig,
        ValidationConfig,
    };

    pub use crate::{Activation, Activations, LanguageModel, Training};
}

/// The device that is used where none is given: the CPU, or in a build without a CPU backend a GPU.
///
/// ```
/// # #[cfg(feature = "flex")]
/// assert_eq!(nextword::default_device().to_string(), "flex");
/// ```
pub fn default_device() -> model::DeviceName {
    if cfg!(feature = "flex") {
        model::DeviceName::Flex
    } else if cfg!(feature = "ndarray") {
        model::DeviceName::NdArray
    } else {
        model::DeviceName::Auto
    }
}

// The published package contains neither README's path nor the models that the examples open: examples are run
// in the repository only.
/// Compiles and runs README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
