//! Inspects a Transformer: every intermediate value, from the prompt to the next token.
//!
//! | for | see |
//! |---|---|
//! | the forward pass as a list of operations | [`graph`](graph::graph), [`Node`] |
//! | all values that the model computed for a prompt and its completion | [`Trace`] |
//! | the same values, recomputed with plain loops in f64 | [`evaluate`](evaluate::evaluate), [`Verification`] |
//! | a loaded model that explains prompts | [`Explainer`], [`Explanation`] |
//! | everything in one value, for JSON and the page | [`Report`] |
//! | the report for a terminal, and for a browser | [`terminal`], [`page`] |
//! | attention and predictions over a run's training | [`history`] |
//! | interventions (what if?) | [`Edit`], [`WhatIf`] |
//! | gradients by backpropagation, and one step of gradient descent | [`gradient`], [`GradientStep`] |
//! | how one value is computed | [`derive`](derive::derive), [`Address`] |
//!
//! # Example
//!
//! ```
//! use burn::tensor::Device;
//! use nextword_explain::Explainer;
//! use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
//! use nextword_model::ModelDir;
//!
//! let model = ModelDir::open("../../docs/models/statquest".as_ref())?;
//! let explainer = Explainer::new(TextGenerator::open(&model, &Device::flex())?);
//! let options = TextOptions { sampling: SamplingConfig::greedy(), ..TextOptions::default() };
//! let explanation = explainer.explain("what is statquest", &options)?;
//! assert!(explanation.trace.verification.is_verified()); // equals the recomputation in f64
//!
//! // Where does the largest logit after the prompt come from?
//! let derivation = explanation.why("logits[position=3,token=3]")?;
//! assert_eq!(explainer.token_text(3), "awesome");
//! assert!((derivation.result.unwrap() - derivation.value.unwrap()).abs() < 1e-4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod ablation;
mod adapted;
mod adapter_report;
mod address;
mod array;
pub mod derivation_text;
pub mod derive;
mod error;
pub mod evaluate;
mod explainer;
mod formula;
pub mod gradient;
mod gradient_step;
pub mod graph;
mod head_notes;
pub mod history;
mod insight;
mod labels;
mod node;
pub mod page;
mod page_values;
mod reasons;
mod recorder;
mod report;
pub mod terminal;
mod trace;
mod verification;
mod what_if;

/// The JSON schema of [`Report`].
pub const SCHEMA: &str = include_str!("assets/schema.json");

pub use adapted::{AdaptedModule, AdaptedModules, graph_with_adapter};
pub use adapter_report::{AdapterReport, AdapterToken, ModuleChange};
pub use address::{Address, SOURCE_TOKENS, TOKENS};
pub use array::Array;
pub use derive::{Derivation, Operand};
pub use error::ExplainError;
pub use evaluate::{DisabledHead, Inputs};
pub use explainer::{EncodedPrompt, Explainer, Explanation};
pub use formula::format_number;
pub use gradient_step::{GradientNorm, GradientStep};
pub use graph::{AttentionKind, Axis, Input, Lengths, Node, Op};
pub use insight::{Contribution, LensStage, Part, Prediction, TokenProb};
pub use labels::{Label, label};
pub use report::{
    CandidateInfo, FORMAT, MAX_REPORT_VALUES, ModelInfo, Report, ReportOptions, SampledToken, Step,
    TensorValues, TokenInfo, TokenOrigin, VerificationSummary,
};
pub use trace::{MAX_TRACE_VALUES, Trace, TraceOptions, count_values};
pub use verification::{Difference, Tolerance, Verification};
pub use what_if::{Edit, PositionChange, ProbChange, WhatIf};
