//! What goes into a batch and what comes out.

use nextword_model::{CachePrecision, PAGE_LEN, RowAdapter};

use crate::{FinishReason, GenerateError, Overflow, SamplingConfig};

/// Sizes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Maximum number of active sequences.
    pub slots: usize,
    /// Length of a prefill chunk in tokens. Default 32.
    pub chunk: usize,
    /// Maximum number of prompt tokens computed per step, at least one chunk. Default 128.
    pub prefill_tokens: usize,
    /// Size of the KV cache in tokens, which all sequences share; at least the model's context. Default: the
    /// model's context for each slot.
    pub cache_tokens: Option<usize>,
    /// How keys and values are stored. Default f32.
    pub cache_precision: CachePrecision,
    /// The decoder's first token in encoder-decoder models. Default 0.
    pub start_id: u32,
}

impl BatchOptions {
    /// Tokens per page of the KV cache: a prefill chunk contains whole pages.
    pub(super) fn page_len(&self) -> usize {
        if self.chunk.is_multiple_of(PAGE_LEN) {
            PAGE_LEN
        } else {
            self.chunk
        }
    }
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            slots: 8,
            chunk: 32,
            prefill_tokens: 128,
            cache_tokens: None,
            cache_precision: CachePrecision::default(),
            start_id: 0,
        }
    }
}

/// How the pages of a KV cache are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Pages of active sequences.
    pub used: usize,
    /// Pages that are kept for reuse by later prompts, until the memory is needed.
    pub cached: usize,
    /// Pages without contents.
    pub free: usize,
    /// How often a sequence lost its pages to an older one and was recomputed.
    pub preemptions: u64,
}

/// How many tokens were proposed in speculative decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProposalCounts {
    /// Proposed tokens that were verified.
    pub proposed: u64,
    /// Those that the model sampled, too.
    pub accepted: u64,
}

/// A request to continue ids.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRequest {
    /// The prompt: at least one id and at most the model's context. In encoder-decoder models it is the source.
    pub prompt: Vec<u32>,
    /// How each token is sampled.
    pub sampling: SamplingConfig,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// The completion ends with the first of these ids, which it includes.
    pub stop_ids: Vec<u32>,
    /// Number of tokens that are generated before one of `stop_ids` can be: until then they are forbidden.
    pub min_tokens: usize,
    /// What to do when the context is full.
    pub overflow: Overflow,
    /// See [`DecodeOptions::bos_id`](crate::DecodeOptions::bos_id).
    pub bos_id: Option<u32>,
    /// Sequence number for the random numbers.
    pub sequence: u64,
    /// How many of the most probable tokens are returned with each score. `None` disables scores.
    pub top_logprobs: Option<usize>,
    /// Whether the prompt is scored too, which only decoders can do. Disables prefix reuse.
    pub score_prompt: bool,
    /// The adapter that the request uses, of the batch's model. Requests with other adapters share its steps and
    /// memory, but no prefixes.
    pub adapter: Option<RowAdapter>,
}

/// Identifies a request of a [`Batcher`](super::Batcher).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// The log-probability of a token under the model, before bias, penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The token id.
    pub id: u32,
    /// The log-probability in nats.
    pub logprob: f64,
    /// The most probable tokens at its position with their log-probabilities, best first.
    pub top: Vec<(u32, f64)>,
}

/// Something that happened to a request in a step.
#[derive(Debug)]
pub enum Event {
    /// Scores of all prompt tokens except the first. Precedes the first token.
    Prompt(Vec<Score>),
    /// The next token of the completion.
    Token {
        /// The token id.
        id: u32,
        /// Its score, if requested.
        score: Option<Score>,
        /// Why the completion ends with this token, if it does.
        finish: Option<FinishReason>,
    },
    /// The completion ended without a further token.
    End(FinishReason),
    /// The completion failed.
    Failed(GenerateError),
}
