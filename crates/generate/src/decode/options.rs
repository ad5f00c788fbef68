//! What a caller decides about decoding, and why a completion ends.

use serde::{Deserialize, Serialize};

use crate::SamplingConfig;

/// What to do when a sequence fills the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Continue with the last `context_length / 2` tokens (at least one) as a new prompt. They are
    /// recomputed because their positions change.
    #[default]
    Slide,
    /// Stop with [`FinishReason::ContextFull`].
    Stop,
}

/// Why a completion ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model generated one of the `stop_ids`.
    Eos,
    /// The text contained this stop string.
    Stop(String),
    /// `max_tokens` were generated.
    Length,
    /// The context was full ([`Overflow::Stop`]).
    ContextFull,
    /// The caller cancelled it.
    Cancelled,
}

/// Settings for decoding.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOptions {
    /// How each token is sampled.
    pub sampling: SamplingConfig,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// A completion ends with the first of these ids, which it includes.
    pub stop_ids: Vec<u32>,
    /// What to do when the context is full.
    pub overflow: Overflow,
    /// If a prompt starts with this BOS token, truncation and context shifts keep it: a model trained
    /// with BOS attends to it.
    pub bos_id: Option<u32>,
    /// First token of the decoder in encoder-decoder models, whose prompts are sources. Without it the
    /// decoder starts with id 0.
    pub start_id: Option<u32>,
    /// Sequence number of the first prompt: prompt i samples with the random numbers of sequence
    /// `first_sequence + i`.
    pub first_sequence: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingConfig::default(),
            max_tokens: 256,
            stop_ids: Vec::new(),
            overflow: Overflow::default(),
            bos_id: None,
            start_id: None,
            first_sequence: 0,
        }
    }
}
