//! Text generation from a trained model: sampling, decoding with a KV cache, stop strings and
//! detokenization.
//!
//! | task | type |
//! |---|---|
//! | sample one token from logits | [`Sampler`], [`SamplingConfig`] |
//! | inspect how a token was sampled, filter by filter | [`SamplingTrace`] |
//! | generate ids with a KV cache | [`Decoder`], [`generate_ids`] |
//! | continuous batching | [`Batcher`] |
//! | speculative decoding | [`Speculation`] |
//! | find stop strings that span several tokens | [`StopScanner`] |
//! | generate text from text, streamed in deltas | [`TextGenerator`] |
//! | fill blanks with an encoder | [`TextGenerator::fill`] |
//! | compare texts by their embeddings | [`TextGenerator::embed`] |
//!
//! Sampling is a pure function of the seed, the sequence number and the token's position. The same
//! seed gives the same text regardless of the rest of the batch: exactly on flex, up to rounding on
//! other devices.
//!
//! # Example
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use burn::tensor::Device;
//! use nextword_generate::{SamplingConfig, TextGenerator, TextOptions};
//! use nextword_model::ModelDir;
//!
//! let model = ModelDir::open("../../docs/models/statquest".as_ref())?;
//! let generator = TextGenerator::open(&model, &Device::flex())?;
//! let options = TextOptions { sampling: SamplingConfig::greedy(), ..TextOptions::default() };
//! let completions = generator.generate(&["what is statquest"], &options, |_prompt, text| {
//!     print!("{text}"); // as soon as it is generated
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(completions[0].text, "awesome");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod batch;
mod candidates;
mod decode;
mod detokenizer;
mod embedding;
mod error;
mod fill;
mod sampler;
mod sampling_config;
mod sampling_trace;
mod speculation;
mod stop;
#[cfg(test)]
mod test_model;
mod text;

pub use batch::{
    BatchOptions, BatchRequest, Batcher, CacheUsage, Event, ProposalCounts, RequestId, Score,
};
pub use decode::{
    DecodeOptions, Decoder, FinishReason, Overflow, Sequence, Token, generate_ids, max_prompt_len,
    truncate_left,
};
pub use detokenizer::Detokenizer;
pub use embedding::Pooling;
pub use error::GenerateError;
pub use fill::{Blank, FillCandidate, FilledText};
pub use sampler::{History, SampleKey, SampledToken, Sampler};
pub use sampling_config::SamplingConfig;
pub use sampling_trace::{Filter, SamplingTrace, TracedCandidate};
pub use speculation::Speculation;
pub use stop::{Scan, StopScanner};
pub use text::{Completion, PROMPT_PLACEHOLDER, TextGenerator, TextOptions, open_tokenizer};
