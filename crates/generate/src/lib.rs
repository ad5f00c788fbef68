//! Text from a trained model: which token comes next, when to stop, and how it is read out.
//!
//! | to read | open |
//! |---|---|
//! | one token from logits | [`Sampler`], [`SamplingConfig`] |
//! | how it was chosen, cut by cut | [`Drawing`] |
//! | many tokens from ids, with a cache | [`Decoder`], [`generate_ids`] |
//! | requests that join and leave a running batch | [`Batcher`] |
//! | stop strings across token borders | [`StopScanner`] |
//! | text in, text out, piece by piece | [`TextGenerator`] |
//!
//! Sampling is a pure function of (seed, number of the sequence, number of the token): the same
//! seed gives the same text, whatever else is in the batch, up to the device's rounding; on flex
//! exactly.

// Burn's nested tensor types overflow the default limit in release builds with wgpu.
#![recursion_limit = "256"]

mod batch;
mod candidates;
mod decode;
mod drawing;
mod error;
mod sampler;
mod sampling_config;
mod stop;
mod text;
mod writer;

pub use batch::{BatchOptions, BatchRequest, Batcher, Event, RequestId, Score};
pub use decode::{
    DecodeOptions, Decoder, FinishReason, Overflow, Sequence, Token, generate_ids, longest_prompt,
    shorten,
};
pub use drawing::{Candidate, Cut, Drawing};
pub use error::GenerateError;
pub use sampler::{Choice, History, Place, Sampler};
pub use sampling_config::SamplingConfig;
pub use stop::{Scan, StopScanner};
pub use text::{Answer, PROMPT, TextGenerator, TextOptions};
pub use writer::TextWriter;
