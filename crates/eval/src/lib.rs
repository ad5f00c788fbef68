//! Evaluation of language models: loss, perplexity, bits per byte and multiple-choice accuracy.
//!
//! [`evaluate`] computes the loss over windows of ids, as validation during training does.
//! [`evaluate_text`] evaluates documents and adds bits per byte. [`evaluate_task`] runs tasks with
//! multiple-choice questions and texts.
//!
//! # Example
//!
//! ```
//! use burn::tensor::Device;
//! use nextword_data::{Builtin, DataConfig, Sources, load_tokenizer};
//! use nextword_eval::{TextSettings, evaluate_text};
//! use nextword_model::ModelDir;
//!
//! let folder = ModelDir::open("../../docs/models/letters".as_ref())?;
//! let model = folder.load(&Device::flex())?;
//! let tokenizer = load_tokenizer(folder.tokenizer_path())?;
//! // Stories of another seed than the training data's.
//! let builtin = Some(Builtin::Stories);
//! let text = Sources::from_config(&DataConfig { builtin, seed: 1, documents: 2, ..Default::default() })?;
//! let chunks = text.chunks_for(tokenizer.text_cuts());
//! let report = evaluate_text(&model, &*tokenizer, &folder.card.special, chunks, TextSettings::default())?;
//! assert_eq!(report.documents, 2);
//! assert!(report.loss.nats_per_token < 1.5); // a uniform guess has ln 55 = 4.0
//! assert!(report.loss.bits_per_byte.unwrap() < 2.2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod batch;
mod calibration;
mod error;
mod loss;
mod padding;
mod tasks;
mod text;
mod token_scores;

pub use batch::{attention_mask, batch_context, batch_tokens};
pub use calibration::input_squares;
pub use error::EvalError;
pub use loss::{BatchLoss, LossReport, batch_losses, evaluate};
pub use tasks::{TaskReport, evaluate_task, evaluate_task_with};
pub use text::{
    EvalProgress, TextReport, TextSettings, TextWindows, evaluate_text, evaluate_text_with,
    text_windows,
};
pub use token_scores::{TokenScore, for_each_logits, score_tokens};
